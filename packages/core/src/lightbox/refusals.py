"""What Hydra and OmegaConf refuse, in three parts with key and close matches. For `config` and `multirun` only."""

import difflib
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lightbox.errors import RequestError


def read_override(override: str) -> Override:
    """Parse one override, ``key=value``.

    Raises:
        RequestError: unless it sets one key of a schema to one value.
    """
    given = f"The override '{override}'"
    if "=" not in override or override.startswith("-"):
        raise RequestError(given, "An override sets one key", "Write it as key=value")
    if override.startswith(("+", "~", "hydra.", "hydra/")):
        raise RequestError(
            given,
            "The schema is fixed, so keys are neither added nor deleted, and Hydra's own settings do not apply",
            "Set keys of the schema only, as key=value",
        )
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as err:
        reason = next((line for line in str(err).splitlines() if line.strip()), "It is malformed")
        raise RequestError(given, f"Hydra cannot read it: {reason}", "Write key=value; quote special signs") from err
    if parsed.is_sweep_override():
        raise RequestError(given, "One run takes one value", "Start one run per value; write a list as key=[a,b]")
    return parsed


def read_sweep(override: str) -> list[str] | None:
    """Each value of a sweep (``key=a,b``) as an override of its own; None for an override of one value.

    Raises:
        RequestError: as `read_override`, and for an interval, which has no values to take in turn.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        read_override(override)
        raise
    if not parsed.is_sweep_override():
        return None
    if not parsed.is_discrete_sweep():
        given = f"The override '{override}'"
        raise RequestError(given, "An interval has no values to take in turn", "List them as key=a,b or range(1,4)")
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


def check_choice_of_group(override: Override) -> None:
    """Raise `RequestError` unless a group override names one file, as text."""
    if not isinstance(override.value(), str):
        group = override.key_or_group
        given = f"The override '{override.input_line}'"
        raise RequestError(given, f"{group} is a folder of files, and one is chosen by name", f"Write {group}=NAME")


def unknown_choice(err: MissingConfigException) -> RequestError:
    """Say which preset, experiment or other group choice does not exist, and which do."""
    wanted, options = err.missing_cfg_file or "?", list(err.options or [])
    group, _, name = wanted.rpartition("/")
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"Choose {group or 'a file'} from those" if options else "Correct the name, or put the file back"
    hint = f"Did you mean {group}={near[0]}?" if near else hint
    why = f"The choices are {', '.join(options)}" if options else "There is no such file or group"
    return RequestError(f"'{group}={name}'" if group else f"'{wanted}'", why, hint)


def refusal(err: Exception, *, keys: Sequence[str], groups: Sequence[str]) -> RequestError:
    """Say what was refused and why.

    Args:
        err: what Hydra or OmegaConf raised.
        keys: leaf keys of the schema.
        groups: names of the configuration groups.
    """
    chain = list(_causes(err))
    inner = next((e for e in chain if isinstance(e, OmegaConfBaseException)), None)
    if inner is None:
        lines = [line for line in str(chain[0]).splitlines() if line.strip()]
        return RequestError(lines[0], " ".join(lines[1:]) or "Hydra cannot compose it", "Correct the key or the file")
    key, reason = str(inner.full_key or inner.key or "?"), str(inner.msg or inner).splitlines()[0]
    place = next((str(e).split(":")[0] + ": " for e in chain if str(e).startswith("In '")), "")
    if isinstance(inner, MissingMandatoryValue):
        return RequestError(f"{place}{key} has no value", "It is required", f"Give it as {key}=VALUE")
    if key in keys or any(name.startswith(key + ".") for name in keys):
        return RequestError(f"{place}the value of {key}", reason, f"Give {key} a value of its type")
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in keys if name.rpartition(".")[2] == leaf]
    near = list(dict.fromkeys([*same_leaf, *difflib.get_close_matches(key, [*groups, *keys], n=3)]))[:3]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"The keys are {', '.join(keys) or 'unknown'}"
    return RequestError(f"{place}there is no key '{key}'", reason, hint)


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__
