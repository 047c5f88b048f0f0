"""A whole paper in miniature, for tests of the kit: name a finding, and a head on frozen features draws its box."""
