"""What a person reads: `page` writes results as one HTML file, `figures` draws, `comparison` puts runs side by side."""
