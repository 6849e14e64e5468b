"""Keys, tokens and passwords in a text, as detect-secrets knows them. What is found is never shown.

Its detectors are made for lines of code, and some take time by the square of a line. So a text is searched
for what all of them need, a word like `password =` or the beginning of a token, and they see a piece around
that. Of a text the first SEARCHED letters and MOST_PIECES such pieces are looked at, and of a whole dataset
MOST_IN_ALL. Left out are its detectors by entropy, which take any hash or encoded text for a secret, and
that of public IP addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.inputs.data.card.plain_faults import SEARCHED

MOST_PIECES = 8
MOST_IN_ALL = 50_000  # at half a millisecond or less
BEFORE, AFTER = 40, 160  # letters of a piece, beside where it begins
LEAST_SECRET = 6  # letters of a password in quotes,
LEAST_BARE = 8  # and of one without, where it may be any word of a sentence
_LONG = re.compile(r"\S{20}")
_TOKEN = re.compile(
    r"A3T[A-Z0-9]{5}|(?:ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{8}|AccountKey=|://[^\s/:@]{1,100}:[^\s@]{1,100}@"
    r"|[MNO][\w-]{23,25}\.[\w-]{6}\.|gh[pousr]_\w{9}|gl[a-z]{2,6}-\w{9}|GR1348941|eyJ[\w=-]{8}|:_authToken"
    r"|sk-[\w-]{9}|PRIVATE KEY|PuTTY-User-Key|pypi-AgE|SG\.[\w-]{9}|xox[abposr]-\d|hooks\.slack\.com"
    r"|sq0csp-|[rs]k_live_|[0-9a-z]{32}-us\d|\b\d{8,10}:[\w-]{35}|(?:AC|SK)[a-z0-9]{32}"
)
_WORD = re.compile(
    r"(?:key|pass(?:word|wd|phrase)?|pwd|secret|contrase\u00f1a|token)\w{0,20}"
    r"[\"'\]]{0,2}[ \t]{0,3}(?::=|=>|[:=])",
    re.IGNORECASE,
)
_CODE = (
    "aws.AWSKeyDetector", "azure_storage_key.AzureStorageKeyDetector", "basic_auth.BasicAuthDetector",
    "discord.DiscordBotTokenDetector", "github_token.GitHubTokenDetector", "gitlab_token.GitLabTokenDetector",
    "jwt.JwtTokenDetector", "mailchimp.MailchimpDetector", "npm.NpmDetector", "openai.OpenAIDetector",
    "private_key.PrivateKeyDetector", "pypi_token.PypiTokenDetector", "sendgrid.SendGridDetector",
    "slack.SlackDetector", "square_oauth.SquareOAuthDetector", "stripe.StripeDetector",
    "telegram_token.TelegramBotTokenDetector", "twilio.TwilioKeyDetector",
)  # fmt: skip


class Search:
    """Says whether a text holds a likely secret. `left` pieces may still be looked at."""

    def __init__(self) -> None:
        from detect_secrets.plugins import keyword

        self._tokens = [_made(name) for name in _CODE]
        self._keywords = keyword.KeywordDetector()
        self._settings = keyword.CONFIG_DENYLIST_REGEX_TO_GROUP  # values without quotes
        self.left = MOST_IN_ALL

    @property
    def is_over(self) -> bool:
        """Whether there was more to look at than MOST_IN_ALL pieces."""
        return self.left < 0

    def finds(self, text: str) -> bool:
        """Whether a secret is among what is looked at."""
        text = text[:SEARCHED]
        if _may_have_token(text) and any(self._is_token(piece) for piece in self._pieces(_TOKEN, text)):
            return True
        return _may_have_word(text) and any(self._is_password(piece) for piece in self._pieces(_WORD, text))

    def _pieces(self, beginning: re.Pattern[str], text: str) -> Iterator[str]:
        """Pieces of a line that may hold a secret."""
        for number, match in enumerate(beginning.finditer(text)):
            if number == MOST_PIECES or self.left < 0:
                return
            self.left -= 1
            if self.left < 0:
                return
            at = match.start()
            start, end = max(at - BEFORE, 0), at + AFTER
            yield text[text.rfind("\n", start, at) + 1 or start : end].split("\n", 1)[0]

    def _is_token(self, piece: str) -> bool:
        return any(True for detector in self._tokens for _ in detector.analyze_string(piece))

    def _is_password(self, piece: str) -> bool:
        return any(_is_likely(value, LEAST_SECRET) for value in self._keywords.analyze_string(piece)) or any(
            _is_bare(value) for value in self._keywords.analyze_string(piece, self._settings)
        )


# Most texts have neither, and there may be a million: written out, because a generator takes longer than all.
def _may_have_token(text: str) -> bool:
    return "://" in text or "PRIVATE KEY" in text or "PuTTY" in text or _LONG.search(text) is not None


def _may_have_word(text: str) -> bool:
    if ":" not in text and "=" not in text:
        return False
    low = text.lower()
    return (
        "key" in low
        or "pass" in low
        or "pwd" in low
        or "secret" in low
        or "contrase\u00f1a" in low
        or "token" in low
    )


def _made(name: str) -> Any:
    import importlib

    module, _, kind = name.partition(".")
    return getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), kind)()


def _is_bare(value: str) -> bool:
    """Whether the first word behind `password:` may be one: it has digits and letters."""
    word = value.split(None, 1)[0].rstrip(".,;:!?)") if value.strip() else ""
    return any(letter.isdigit() for letter in word) and _is_likely(word, LEAST_BARE)


def _is_likely(value: str, least: int) -> bool:
    """Whether what stands behind `password =` may be one: in a manual it is a name or a placeholder."""
    from detect_secrets.filters import heuristic

    return (
        len(value) >= least
        and any(letter.isalpha() for letter in value)
        and not value.isalpha()
        and " " not in value
        and not heuristic.is_sequential_string(value)
        and not heuristic.is_templated_secret(value)
        and not heuristic.is_indirect_reference(f"key = {value}")
        and not heuristic.is_not_alphanumeric_string(value)
    )
