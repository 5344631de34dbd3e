"""Who may use the app: the real client asks an imitation of the Hub who somebody is."""

from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from dopsd_app.hub import access
from dopsd_app.hub.access import AccessError, check_access, find_token, this_space, trusted_hosts
from tests.support.imitation_hub import ImitationHub

SPACE = {"SYSTEM": "spaces", "SPACE_ID": "Makers/trainer", "SPACE_AUTHOR_NAME": "Makers"}
VARIABLES = ("SYSTEM", "SPACE_ID", "SPACE_AUTHOR_NAME", "SPACES_ZERO_GPU", "OAUTH_CLIENT_ID", "HF_TOKEN")
NOT_YOURS = "This Space belongs to Makers, and only its owner may do this. Duplicate it"


@pytest.fixture(scope="module")
def imitation():
    with ImitationHub() as hub:
        yield hub


@pytest.fixture
def hub(imitation, monkeypatch, tmp_path):
    """The Hub for this process; nobody was asked about yet."""
    imitation.reset()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", imitation.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(access, "_answers", {})
    for name in (*VARIABLES, "HUGGING_FACE_HUB_TOKEN", "DOPSD_TRUSTED_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    return imitation


@pytest.fixture
def space(hub, monkeypatch):
    """On a Space that belongs to Makers."""
    for name, value in SPACE.items():
        monkeypatch.setenv(name, value)
    return hub


def refusal(token):
    with pytest.raises(AccessError) as caught:
        check_access(token)
    return str(caught.value)


def test_at_ones_own_computer_nobody_is_asked(hub):
    assert this_space() is None
    check_access(None)
    check_access("whatever")
    assert hub.requests == []


def test_a_space_tells_what_it_is(space, monkeypatch):
    assert this_space() == access.Space("Makers/trainer", "Makers", zero_gpu=False, sign_in=False)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    monkeypatch.delenv("SPACE_AUTHOR_NAME")
    assert this_space() == access.Space("Makers/trainer", "Makers", zero_gpu=True, sign_in=True)


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_sign_in_the_hub_is_not_even_asked(space, token):
    assert refusal(token) == "Only Makers, who owns this Space, may do this. Sign in, or duplicate it."
    assert space.requests == []


@pytest.mark.parametrize("organisations", [{}, {"Makers": "read"}, {"Makers": "contributor"}, {"Makers": ""}])
def test_strangers_and_members_who_may_not_change_the_space_are_refused(space, organisations):
    space.add_account("hf_x", "Eve", {"Others": "admin", **organisations})
    assert refusal("hf_x").startswith(NOT_YOURS)


@pytest.mark.parametrize(
    ("name", "organisations"),
    [("Makers", {}), ("makers", {}), ("Ann", {"Makers": "admin"}), ("Bob", {"MAKERS": "write"})],
)
def test_the_owner_and_members_who_may_change_the_space_are_let_in(space, name, organisations):
    space.add_account("hf_x", name, organisations)
    check_access("hf_x")


def test_without_an_owner_nobody_is_let_in(space, monkeypatch):
    monkeypatch.delenv("SPACE_AUTHOR_NAME")
    monkeypatch.delenv("SPACE_ID")
    space.add_account("hf_x", "", {"": "admin"})
    refusal("hf_x")


def test_an_unknown_token_and_an_answer_that_is_none_are_refused(space):
    assert "The Hub does not accept this token" in refusal("hf_unknown")
    space.accounts["hf_x"] = {"strange": 1}
    assert "The Hub's answer cannot be read" in refusal("hf_x")
    assert "not a token of the Hub" in refusal("ü\n")


def test_while_the_hub_is_away_nobody_new_is_let_in(space):
    space.add_account("hf_x", "Makers")
    space.stop()
    try:
        assert refusal("hf_x").startswith("The Hub could not say who you are. The Hub cannot be reached")
    finally:
        space.start()
    check_access("hf_x")  # that it was away is not remembered
    space.stop()
    try:
        check_access("hf_x")
    finally:
        space.start()


def test_a_token_that_was_revoked_works_for_five_minutes_more(space, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: clock.now))
    space.add_account("hf_x", "Makers")
    check_access("hf_x")
    del space.accounts["hf_x"]
    clock.now += 299
    check_access("hf_x")
    assert len(space.asked("whoami")) == 1
    clock.now += 2
    assert "does not accept this token" in refusal("hf_x")


def test_no_token_is_kept_in_memory(space):
    space.add_account("hf_marked", "Makers")
    check_access("hf_marked")
    assert access._answers and "hf_marked" not in repr(access._answers)


# --- which token pushes


def test_the_typed_token_goes_before_the_sign_in_and_that_before_the_computers(hub, tmp_path):
    (tmp_path / "token").write_text("hf_computer")
    assert find_token(" hf_typed\n", "hf_signed") == "hf_typed"
    assert find_token(" ", "hf_signed") == "hf_signed"
    assert find_token("", None) == "hf_computer"


def test_without_any_token_one_is_told_where_to_get_it(hub):
    with pytest.raises(AccessError, match=r"huggingface.co/settings/tokens .* or run `hf auth login`"):
        find_token("", None)


def test_on_a_space_the_ambient_token_is_never_taken(space, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("hf_owner")
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    assert find_token("", "hf_visitor") == "hf_visitor"
    with pytest.raises(AccessError, match="Sign in to Hugging Face first"):
        find_token("", None)


# --- under which names the page answers


def test_trusted_hosts_are_this_computer_and_what_is_added(hub, monkeypatch):
    own = ["localhost", "127.0.0.1", "[::1]"]
    assert trusted_hosts() == own
    monkeypatch.setenv("DOPSD_TRUSTED_HOSTS", " studio.lan ,,10.0.0.7")
    assert trusted_hosts() == [*own, "studio.lan", "10.0.0.7"]


def test_a_space_answers_under_the_names_of_spaces(space):
    assert trusted_hosts() == ["localhost", "127.0.0.1", "[::1]", "*.hf.space"]
