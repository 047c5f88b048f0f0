"""ViTAR (arXiv 2510.10052): think, mark a region of the image, look again at the marked image, answer.

Read `claims` (what is tested), `config`, `data` (who is asked what), `traces` (episodes to imitate), `rollout` (the
idea: how a policy and the environment talk), `model`, `train`, `evaluate`, `scores`, `predict`; `actions` is ViTAR's
JSON, `rewards` and `reinforce` are training by rewards, `looking` says where the policy looks. What papers share is in
`lightbox.paper`. Nothing heavy is imported here.
"""
