"""Whose a token is, and where it may write."""

import os
from dataclasses import dataclass

from dopsd_app.hub.client import pushing_errors
from dopsd_app.hub.publication import check_name
from dopsd_app.hub_errors import HubError, check_token


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to, as the Hub says."""

    name: str
    organisations: dict[str, str]  # by name, the account's role: "read", "contributor", "write" or "admin"
    token_role: str  # "read", "write" or "fineGrained"; empty for a token that signing in gave

    @property
    def may_write(self) -> bool:
        """Whether the token may write at all; where a fine-grained one may, only trying tells."""
        return self.token_role != "read"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Under which names it can put a model, its own first."""
        return (self.name, *(name for name, role in self.organisations.items() if role != "read"))


def who_is(token: str | None) -> Account:
    """The account behind a token; raises `HubError` when the Hub knows none, or cannot be asked."""
    from huggingface_hub import HfApi

    token = check_token(token)
    with pushing_errors("your account", token):
        answer = HfApi(token=token).whoami()
        return Account(
            name=answer["name"],
            organisations={org["name"]: org.get("roleInOrg") or "" for org in answer.get("orgs", ())},
            token_role=answer.get("auth", {}).get("accessToken", {}).get("role", ""),
        )


def pause_space(token: str | None) -> None:
    """Pauses the Space that we run on: this process ends, and nothing more is billed."""
    from huggingface_hub import HfApi

    if not (space := os.environ.get("SPACE_ID")):
        raise HubError("This is not a Space: there is nothing to pause.")
    token = check_token(token)
    with pushing_errors(f"the Space {space}", token):
        HfApi(token=token).pause_space(space)


def own_repository(account: Account, name: str) -> str:
    """The full name to push to; refused here where it is known that the Hub would refuse."""
    check_name(name)
    owner, _, short = name.rpartition("/")
    if not account.may_write:
        raise HubError("This token may only read: make one on the Hub that may write, and use that.")
    names = {known.casefold(): known for known in (account.name, *account.organisations)}
    known = names.get((owner or account.name).casefold())
    if known is None:
        raise HubError(f"{account.name} is not a member of {owner}: push under your own name.")
    if known not in account.namespaces:
        raise HubError(f"{account.name} may only read in {known}: push under your own name.")
    return f"{known}/{short}"
