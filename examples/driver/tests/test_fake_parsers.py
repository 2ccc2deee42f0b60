"""The driver's parsers make no job suffer for the line of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from edgecore_fake import text

from edgecore.testing import ParserContract

FSTAT = b"""\
ID|NAME|OWNER|STATE|QUEUED|STARTED|NODES|REASON
17|ehoejjitbjm01|edge|RUN|1795365538|1795365540|n1|
18_0|ehoejjitbjn01|edge|WAIT|1795365539|||waits for nodes
18_1|ehoejjitbjn01|edge|HOLD|1795365539|||held by its user
19|someone's job|jane|RUN*|1795365541|1795365541|n2|
"""
FACCT = b"""\
ID|NAME|OWNER|STATE|QUEUED|STARTED|ENDED|EXIT|SIGNAL|NODES
17|ehoejjitbjm01|edge|DONE|1795365538|1795365540|1795365550|0||n1
18_0|ehoejjitbjn01|edge|CANCELLED by 0|1795365539|||||
19|someone's job|jane|NO_MEMORY|1795365541|1795365541|1795365542|137|9|n2
"""


@pytest.mark.slow
class TestListing(ParserContract):
    """Both commands print lines below a line of names."""

    good: ClassVar = (FSTAT, FACCT)
    head_lines: ClassVar = 1

    def parse(self, output: bytes) -> Mapping[Any, Any] | None:
        return text.parse_listing(output)
