"""New tokens: a place for each in tokenizer, token table and head, of which only those rows train."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken

from lightbox.errors import RequestError


@torch.no_grad()
def add_tokens(model: Any, tokenizer: Any, tokens: Sequence[str | AddedToken]) -> dict[str, int]:
    """Give each token an id, and enlarge the model's tables where they have no spare row for it.

    A new row starts as the mean of the rows of words that the tokenizer splits the token into, or of all rows. Rows
    that are spare in the published table (padding to a round number) are used first. The same call with the same
    tokens gives the same ids and rows, so do it before an adapter that has these tokens is loaded.

    Args:
        model: a model of transformers, without adapters.
        tokenizer: of that model; it is changed in place.
        tokens: such as "<mask>", or with flags of their own; each must be new.

    Returns:
        Id by token.

    Raises:
        RequestError: where a token is known already, or given twice.
    """
    vocabulary, names = tokenizer.get_vocab(), [str(token) for token in tokens]
    double = sorted({token for token in names if token in vocabulary or names.count(token) > 1})
    if double:
        raise RequestError(
            f"The new tokens {', '.join(repr(token) for token in double)}",
            "Each is in the tokenizer already or is given twice, and its row would be overwritten",
            "Name tokens that are new, each once",
        )
    pieces = {token: tokenizer(token, add_special_tokens=False)["input_ids"] for token in names}
    tokenizer.add_tokens(list(tokens))
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in names}
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids.values(), default=-1) >= rows:
        # its own draw of new rows would be written over below
        model.resize_token_embeddings(max(ids.values()) + 1, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        # without the new rows, whose values mean nothing yet
        old = table.weight[: min(rows, *ids.values())] if ids else table.weight
        for token, row in ids.items():
            source = old[pieces[token]] if pieces[token] and max(pieces[token]) < len(old) else old
            table.weight[row] = source.float().mean(dim=0).to(table.weight.dtype)
    return ids
