"""What can go wrong in the face, as a ClickHouse server says it: an error code, its text, and an HTTP status."""

import re

_CODE = re.compile(r"Code: (\d+)\. ")
_REPEATED_PREFIX = re.compile(r"(?:Code: \d+\. DB::Exception: )+(?=Code: \d+\. )")

# Codes of the errors that the face itself raises; the engine names its own.
SYNTAX_ERROR = 62
CANNOT_DECOMPRESS = 271
NOT_IMPLEMENTED = 48
UNKNOWN_COMPRESSION_METHOD = 89
UNKNOWN_SETTING = 115
AUTHENTICATION_FAILED = 516
STD_EXCEPTION = 1001

# The statuses that a ClickHouse server gives its error codes; every other code is a 500.
_CODES_BY_STATUS: dict[int, tuple[int, ...]] = {
    400: (6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 441, 675, 676),
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
    408: (159,),
    411: (381,),
    413: (229,),
    415: (779,),
    501: (48,),
    503: (76, 209, 439),
}
_STATUS_BY_CODE = {code: status for status, codes in _CODES_BY_STATUS.items() for code in codes}


class FaceError(Exception):
    """A statement was refused. `code` is ClickHouse's error code, the text is ClickHouse's text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def status(self) -> int:
        """The HTTP status that a ClickHouse server gives this code."""
        return _STATUS_BY_CODE.get(self.code, 500)


def refusal(code: int, text: str, name: str) -> FaceError:
    """An error of the face itself, worded as ClickHouse words its own."""
    return FaceError(code, f"Code: {code}. DB::Exception: {text} ({name})")


def from_engine(error: Exception) -> FaceError:
    """The error in what chDB raised: chDB puts ClickHouse's text into plain exceptions, sometimes behind words of its own."""
    text = str(error)
    found = _CODE.search(text)
    if found is None:
        return FaceError(STD_EXCEPTION, f"Code: {STD_EXCEPTION}. DB::Exception: {text}")
    text = _REPEATED_PREFIX.sub("", text[found.start() :])
    innermost = _CODE.match(text)
    return FaceError(int((innermost or found).group(1)), text)
