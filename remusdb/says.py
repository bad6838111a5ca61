# SPDX-License-Identifier: Apache-2.0
"""What a key of the JSON that remusdb prints means, beside its type: docs/json.md is made of it."""

from __future__ import annotations

from msgspec import Meta


def says(meaning: str) -> Meta:
    """For `Annotated`: a few words. The unit is in the key's name (`took_ms`), or in them."""
    return Meta(description=meaning)
