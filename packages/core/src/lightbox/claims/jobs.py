"""Content-addressed jobs: one arm trained and scored on one seed, named by everything that can change its scores.

The key is that of `runs.key`, as `lightbox train` gives it. Equal keys are one job, whatever arm, claim or preset asked
for it, so claims share jobs and a second `reproduce` runs only what changed. No torch.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightbox.claims.budget import settings_digest
from lightbox.claims.registry import Paper, arms_in_order
from lightbox.claims.spec import Arm, Claim, at_budget, base_arm
from lightbox.files import to_plain
from lightbox.runs.folders import flatten
from lightbox.runs.key import Identity, effective, identify


@dataclass(frozen=True)
class Job:
    """One arm of one seed.

    Args:
        key: 20 hex digits; the name of the job's folder.
        paper: its name; package: what a worker imports.
        overrides: what the worker hands to the paper: preset, seed, then the arm's own.
        config: the resolved configuration, plain.
        inputs: digests of data, weights and files, and the device, as the paper names them.
        modules: digest of the code by module; source: one digest of them all.
        computing: versions of the distributions that compute.
        needs: keys of the jobs whose folders it reads, by arm.
        budget: its training budget; settings: digest of what it shares with the pilot, see `claims.budget`.
        minutes: expected on one core; mem_gib: expected peak memory.
    """

    key: str
    paper: str
    package: str
    arm: str
    seed: int
    preset: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    inputs: dict[str, str]
    modules: dict[str, str]
    source: str
    computing: dict[str, str]
    needs: dict[str, str] = field(default_factory=dict)
    budget: int = 0
    settings: str = ""
    minutes: float = 0.0
    mem_gib: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a `reproduce` has to run.

    Args:
        preset: name of the size preset.
        claims: in the order they are shown.
        jobs: by key, needs first, seed by seed, so that whole seeds end early and the page fills in.
        keys: job key of each (paper, arm, seed).
        skipped: claims asked for that the preset does not run.
    """

    preset: str
    claims: tuple[tuple[Paper, Claim], ...]
    jobs: dict[str, Job]
    keys: dict[tuple[str, str, int], str]
    skipped: tuple[Claim, ...] = ()

    def scored_keys(self) -> set[str]:
        """Keys of the jobs whose scores a claim reads; the others only feed a job that needs them."""
        return {
            key
            for (name, arm, seed), key in self.keys.items()
            for paper, claim in self.claims
            if name == paper.name and claim.reads(arm) and seed in seeds_of(claim, self.preset)
        }

    def usual_budget(self, paper: Paper) -> int:
        """The preset's training budget, as the jobs of a paper have it; 0 where no claim runs at it."""
        budgeted = paper.claims.budgeted  # and no "@": such a name has another budget
        jobs = (self.jobs[key] for (name, arm, _), key in self.keys.items() if name == paper.name and arm in budgeted)
        return next((job.budget for job in jobs), 0)

    def own_arms(self) -> set[tuple[str, str]]:
        """Arms, as (paper, planned name), that some claim reads at its declared budget; not those of a ladder alone."""
        own = set()
        for paper, claim in self.claims:
            budgeted = paper.claims.budgeted if claim.budget else frozenset()
            usual = self.usual_budget(paper) if claim.budget else 0
            for (name, arm, _), key in self.keys.items():
                called: str | None = arm
                if base_arm(arm)[0] in budgeted:
                    called = name_in_claim(claim, self.preset, arm, budget=self.jobs[key].budget, usual=usual)
                if name == paper.name and claim.reads(arm) and called is not None and not base_arm(called)[1]:
                    own.add((name, arm))
        return own


FIRST_SEED = {"full": 100}
"""First seed of a preset, 0 where it is not named: `full` shares none with `quick`, so that one confirms the other."""


def seeds_of(claim: Claim, preset: str) -> range:
    """Seeds that a claim takes at a preset; those from 900 on are for development and decide nothing."""
    first = FIRST_SEED.get(preset, 0)
    return range(first, first + claim.seeds[preset])


def budgets_of(claim: Claim, preset: str, usual: int) -> tuple[int, ...]:
    """Training budgets at which the seeds of a claim run, ascending, the declared one last.

    `usual` is the preset's own, which a claim has where it declares none.
    """
    declared = claim.budget_by_preset.get(preset, usual)
    return (*sorted(int(share * declared) for share in claim.ladder.get(preset, ())), declared)


def name_in_claim(claim: Claim, preset: str, name: str, *, budget: int, usual: int) -> str | None:
    """What a claim calls an arm that was planned as `name`: by its own name at the declared budget; None if unread.

    Args:
        claim: that may read the arm.
        preset: size preset.
        name: as planned, see `at_budget`; of an arm that a training budget changes.
        budget: its training budget; usual: the preset's.
    """
    budgets = budgets_of(claim, preset, usual)
    if budget not in budgets or not claim.reads(name):
        return None
    return at_budget(base_arm(name)[0], 0 if budget == budgets[-1] else budget)


def plan(claims: Sequence[tuple[Paper, Claim]], preset: str) -> Plan:
    """Plan the jobs of some claims; the same job asked for twice is planned once.

    Args:
        claims: from `registry.choose_claims`, each with its paper.
        preset: size preset; claims that do not run at it are skipped and listed.

    Raises:
        RequestError: where a configuration does not compose.
    """
    wanted = tuple((paper, claim) for paper, claim in claims if preset in claim.presets)
    jobs: list[Job] = []
    for paper in {paper.name: paper for paper, _ in wanted}.values():
        jobs += _paper_jobs(paper, [claim for owner, claim in wanted if owner is paper], preset)
    skipped = tuple(claim for _, claim in claims if preset not in claim.presets)
    return replace(plan_jobs(jobs, preset), claims=wanted, skipped=skipped)


def plan_jobs(jobs: Iterable[Job], preset: str) -> Plan:
    """Plan jobs seed by seed, each key once; needs must come first in `jobs`."""
    ordered = sorted(jobs, key=lambda job: job.seed)  # stable: needs stay first within a seed
    first: dict[str, Job] = {}
    for job in ordered:
        first.setdefault(job.key, job)
    return Plan(preset, (), first, {(job.paper, job.arm, job.seed): job.key for job in ordered})


def _paper_jobs(paper: Paper, claims: Sequence[Claim], preset: str) -> list[Job]:
    """Jobs of one paper: each arm that a claim reads or another arm needs, on every seed that asks for it."""
    jobs: list[Job] = []
    usual = preset_budget(paper, preset) if paper.claims.budget else 0
    budgets = {claim.id: budgets_of(claim, preset, usual) for claim in claims}
    for budget in sorted({b for own in budgets.values() for b in own}):  # so at its last seed a claim has its ladder
        seeds: dict[str, range] = {}
        for claim in claims:
            if budget in budgets[claim.id]:
                for arm in arms_in_order(paper.claims, claim.arms):
                    seeds[arm] = max(seeds.get(arm, range(0)), seeds_of(claim, preset), key=len)
        jobs += arm_jobs(paper, seeds, preset, budget=0 if budget == usual else budget)
    return jobs


def preset_budget(paper: Paper, preset: str) -> int:
    """How long the trained arms of a paper train at a preset, in its budget axis."""
    return next(make_template(paper, arm, preset).budget for arm in paper.claims.arms.values() if arm.is_trained)


def arm_job(paper: Paper, arm: str, *, preset: str, seed: int) -> Job:
    """The job of one arm on one seed as it would be planned today; it need not belong to a claim."""
    name, budget = base_arm(arm)
    seeds = dict.fromkeys(arms_in_order(paper.claims, [name]), [seed])
    return arm_jobs(paper, seeds, preset, budget=budget)[-1]


def arm_jobs(
    paper: Paper, seeds: Mapping[str, Sequence[int]], preset: str, *, budget: int = 0, overrides: Sequence[str] = ()
) -> list[Job]:
    """Jobs of each arm on its seeds, needs first; the needs of an arm have its seeds too.

    Args:
        paper: whose arms they are.
        seeds: by arm.
        preset: size preset.
        budget: training budget in place of the preset's, for the arms that depend on it and what they need; 0 keeps it.
        overrides: further ones, for every arm.
    """
    jobs: dict[tuple[str, int], Job] = {}
    for name in arms_in_order(paper.claims, seeds):
        arm, own = paper.claims.arms[name], budget if name in paper.claims.budgeted else 0
        changes = (f"{paper.claims.budget}={own}",) if own else ()
        template = make_template(paper, replace(arm, overrides=(*arm.overrides, *changes, *overrides)), preset)
        template = replace(template, arm=at_budget(name, own))
        for seed in seeds[name]:
            needs = {need: jobs[need, seed].key for need in paper.claims.arms[name].needs}
            jobs[name, seed] = with_seed(template, seed, needs)
    return list(jobs.values())


def make_template(paper: Paper, arm: Arm, preset: str) -> Job:
    """The arm's job on seed 0, without a key; `with_seed` gives it seed, needs and key.

    Composing a configuration costs 50-100 ms, so it is done once an arm.
    """
    overrides = (f"preset={preset}", "run.seed=0", f"experiment={arm.name}", *arm.overrides)
    module = paper.config()
    cfg = module.resolve(list(overrides))
    cost = module.estimate(cfg)
    config = to_plain(cfg)
    identity = identify(paper.package, config, inputs=module.inputs(cfg), chosen=module.chosen(cfg))
    axis = paper.claims.budget
    return Job(
        key="",
        paper=paper.name,
        package=paper.package,
        arm=arm.name,
        seed=0,
        preset=preset,
        overrides=overrides,
        config=config,
        inputs=identity.inputs,
        modules=identity.modules,
        source=identity.record["source"],
        computing=identity.versions,
        budget=int(flatten(config)[axis]) if axis else 0,
        settings=settings_digest(config, identity.inputs, axis),
        minutes=float(cost["minutes"]),
        mem_gib=float(cost["mem_gib"]),
    )


def with_seed(template: Job, seed: int, needs: Mapping[str, str]) -> Job:
    """The job of a template on one seed, with the keys of the jobs it needs, and its own key."""
    config = copy.deepcopy(template.config)
    config["run"]["seed"] = seed
    preset, _, *own = template.overrides
    # code and versions are those of the template: reading them again for every seed would take seconds
    identity = Identity(effective(config), template.inputs, template.modules, template.computing, dict(needs))
    return replace(
        template,
        key=identity.key,
        seed=seed,
        overrides=(preset, f"run.seed={seed}", *own),
        config=config,
        needs=dict(needs),
    )
