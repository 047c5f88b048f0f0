"""ViTAR (arXiv 2510.10052): think, mark a region of the image, look again at the marked image, answer.

Read `environment` (what an action does to the image), `actions` (how a policy writes one), `rewards` (what an episode
is worth), `rollout` (the idea: how a policy and the environment talk), `traces` (episodes to imitate). The loss over
groups of episodes is `lightbox.losses.policy`. Nothing heavy is imported here.
"""
