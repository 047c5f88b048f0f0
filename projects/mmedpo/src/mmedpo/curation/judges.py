"""What a pair is worth: language models who score it in turn, each hearing the score before. No torch.

The paper: judges read question, true and rejected answer without the image; each takes up the score before or gives
the own one, until all agree in a round or `ROUNDS` are over, where the mean of all that was said decides. When a judge
takes a score up is our rule, that of `relevance.debate`: within `AGREED` of the own.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from lightbox.chat import ChatModel
from lightbox.chat_json import ask_json, deciding
from lightbox.errors import RequestError
from lightbox.paper.stages import Result
from mmedpo.relevance import AGREED, ROUNDS

PROMPT = """You judge material for training a medical model that answers questions about images. You get a question
about an image that you do not see, its true answer and a false one. Say how relevant the false answer is in the clinic:
1 for a mistake that a reader of the image could make and that would matter, 0 for one that is absurd or beside the
point, in tenths. The score of another judge may be given; weigh it. Reply with one JSON object and nothing else,
{"score": NUMBER}."""
Opinion = Callable[[float | None], float]
"""A judge of one pair: the score that was said before, None at first -> the own score, 0 to 1."""


@dataclass(frozen=True)
class Panel:
    """Judges behind endpoints, in the order in which they speak.

    Args:
        chats: the models, at least one.
        datasets: names of the data sets that questions are from, see `chat.ask`.
        cache: folder of their answers.

    Raises:
        RequestError: a judge who sits there twice.
    """

    chats: Sequence[ChatModel]
    datasets: Collection[str]
    cache: Path

    def __post_init__(self) -> None:
        names = [(chat.url, chat.model) for chat in self.chats]
        if twice := [model for place, (url, model) in enumerate(names) if (url, model) in names[:place]]:
            raise RequestError(f"Judge '{twice[0]}' twice", "It would agree with itself", "Name each judge once")

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the scores."""
        rule = {"rounds": ROUNDS, "adopts_within": AGREED}
        return {"judges": [deciding(chat) for chat in self.chats], "prompt": PROMPT, **rule}

    def score(self, question: str, chosen: str, rejected: str) -> Result:
        """The score and who said what, see `discuss`.

        Raises:
            RequestError, WorkError: as `ask_json`.
        """
        pair = {"question": question, "true answer": chosen, "false answer": rejected}
        judges = {f"{chat.model} at {chat.url}": partial(self._opinion, chat, pair) for chat in self.chats}
        return discuss(judges)

    def _opinion(self, chat: ChatModel, pair: Mapping[str, str], heard: float | None) -> float:
        asked = pair if heard is None else {**pair, "score of another judge": heard}
        text = json.dumps(asked, ensure_ascii=False)
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": text}]
        return ask_json(chat, messages, _score, datasets=self.datasets, cache=self.cache)


def discuss(judges: Mapping[str, Opinion]) -> Result:
    """Judges of one pair, by name, speak in turn until a round in which all say the same.

    Returns:
        score, 0 to 1; agreed, whether they did; said, for each turn the round, the judge, what it heard, its own score
        and what it then said.
    """
    said: list[dict[str, Any]] = []
    heard: float | None = None
    for number in range(1, ROUNDS + 1):
        for name, opinion in judges.items():
            own = opinion(heard)
            takes_up = heard is not None and abs(own - heard) <= AGREED + 1e-9
            turn = {"round": number, "judge": name, "heard": heard, "own": own, "said": heard if takes_up else own}
            heard = turn["said"]
            said.append(turn)
        if len({turn["said"] for turn in said[-len(judges) :]}) == 1:
            return {"score": heard, "agreed": True, "said": said}
    return {"score": round(fmean(turn["said"] for turn in said), 6), "agreed": False, "said": said}


def _score(fields: Mapping[str, Any]) -> float:
    score = fields.get("score")
    if score is None:
        raise ValueError("the field score is missing")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"score is {score!r:.40}, not a number")
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score!r:.40}, not between 0 and 1")
    return float(score)
