from pathlib import Path

import pytest

from gateway import settings
from gateway.errors import ConfigError
from gateway.settings import PREFIX, Settings, load, normal_origin, unknown


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No setting of the machine that runs the tests."""
    import os

    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_the_contracts(tmp_path):
    found = load()
    assert found.data == tmp_path / "data"
    assert found.store == f"sqlite:///{tmp_path}/data/vestnik.db"
    assert (found.bus, found.host, found.port, found.processes, found.jwks) == ("memory://", "127.0.0.1", 8080, 1, None)
    assert (found.window, found.beat_s, found.saver_beat_s, found.message_bytes) == (256, 25, 60, 16384)
    assert (found.hello_deadline_s, found.head_deadline_s, found.write_deadline_s) == (10, 10, 60)
    assert (found.tail_bytes, found.retention_days, found.feeds) == (64 * 2**20, 90, 32)
    assert (found.rate, found.burst, found.hellos, found.backoff_s, found.drain_s) == (120, 60, 30, 60, 30)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def test_flags_outrank_the_environment_which_outranks_the_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("VESTNIK_PORT=1001\nVESTNIK_HOST=10.0.0.1\nVESTNIK_WINDOW=7\nOTHER=x\n")
    monkeypatch.setenv("VESTNIK_PORT", "1002")
    monkeypatch.setenv("VESTNIK_HOST", "10.0.0.2")
    found = load(port=1003, host=None)
    assert (found.port, found.host, found.window) == (1003, "10.0.0.2", 7)


def test_an_empty_value_is_unset(monkeypatch):
    monkeypatch.setenv("VESTNIK_JWKS", "")
    monkeypatch.setenv("VESTNIK_PORT", "")
    assert (load().jwks, load().port) == (None, 8080)


def test_the_store_follows_the_data_directory(tmp_path):
    assert load(data="elsewhere").store == f"sqlite:///{tmp_path}/elsewhere/vestnik.db"
    assert load(data="elsewhere", store="memory://").store == "memory://"


WRONG = [
    ("port", "abc", "VESTNIK_PORT must be a whole number from 0 to 65535, got 'abc'."),
    ("port", "70000", "VESTNIK_PORT must be a whole number from 0 to 65535, got '70000'."),
    ("beat_s", "0", "VESTNIK_BEAT_S must be a number above 0 and up to 3600, got '0'."),
    ("beat_s", "nan", "VESTNIK_BEAT_S must be a number above 0 and up to 3600, got 'nan'."),
    ("agency_rate", "inf", "VESTNIK_AGENCY_RATE must be a number above 0, got 'inf'."),
    ("tail_bytes", "1", "VESTNIK_TAIL_BYTES must be a whole number from 65536 on, got '1'."),
    ("log_level", "loud", "VESTNIK_LOG_LEVEL must be one of debug, info, warning, error, got 'loud'."),
    ("metrics", "maybe", "VESTNIK_METRICS must be true or false, got 'maybe'."),
    ("host", "a b", "VESTNIK_HOST must be a host name or an IP address without port, got 'a b'."),
    ("jwks", "ftp://x", "VESTNIK_JWKS must be a file or an http(s) URL, got 'ftp://x'."),
    ("jwks", "https://", "VESTNIK_JWKS must be a file or an http(s) URL with a host, got 'https://'."),
    ("audience", "a" * 300, "VESTNIK_AUDIENCE must be text of 1 to 200 characters, got '" + "a" * 77 + "…'."),
    (
        "oldest_agents",
        "gosapp",
        "VESTNIK_OLDEST_AGENTS must be a comma separated list of name/version like gosapp-android/2.10, got 'gosapp'.",
    ),
    (
        "origins",
        "https://a.ru, b.ru",
        "VESTNIK_ORIGINS must be a comma separated list of origins like https://lk.example.ru,"
        " got 'https://a.ru, b.ru'.",
    ),
    (
        "store",
        "mysql://me:hidden@db/x",
        "VESTNIK_STORE must begin with one of sqlite:///, memory://, postgresql://, got 'mysql://me:***@db/x'.",
    ),
    (
        "bus",
        "amqp://x",
        "VESTNIK_BUS must begin with one of memory://, redis://, redis+sentinel://, redis+cluster://, rediss://,"
        " rediss+sentinel://, rediss+cluster://, got 'amqp://x'.",
    ),
    (
        "alert_url",
        "ftp://me:hidden@x",
        "VESTNIK_ALERT_URL must be an http(s) URL with a host, got 'ftp://me:***@x'.",
    ),
    ("alert_url", "http://x:99999", "VESTNIK_ALERT_URL must be an http(s) URL with a host, got 'http://x:99999'."),
    ("alert_url", "https://x", "VESTNIK_ALERT_URL and VESTNIK_ALERT_SECRET must be set together."),
    ("alert_secret", "whsec_" + "A" * 32, "VESTNIK_ALERT_URL and VESTNIK_ALERT_SECRET must be set together."),
    (
        "processes",
        "2",
        "VESTNIK_BUS must reach all 2 processes (redis://…) or VESTNIK_PROCESSES must be 1, got 'memory://'.",
    ),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_a_wrong_value_is_one_sentence_that_names_the_setting(monkeypatch, name, value, sentence):
    monkeypatch.setenv(PREFIX + name.upper(), value)
    with pytest.raises(ConfigError) as raised:
        load()
    assert str(raised.value) == sentence


@pytest.mark.parametrize("secret", ["whsec_", "whsec_c2hvcnQ=", "whsk_" + "A" * 44, "whsec_" + "A" * 92, "whsec_!"])
def test_a_wrong_secret_is_not_repeated(secret: str):
    with pytest.raises(ConfigError) as raised:
        load(env_file=None, alert_url="https://alerts.example", alert_secret=secret)
    assert str(raised.value) == "VESTNIK_ALERT_SECRET must be whsec_ and 24 to 64 bytes in base64."


def test_a_secret_is_not_shown():
    secret = "whsec_" + "A" * 32
    settings = load(env_file=None, alert_url="https://alerts.example", alert_secret=secret)
    assert settings.alert_secret is not None
    assert settings.alert_secret.get_secret_value() == secret
    assert "AAAA" not in repr(settings)


def test_a_wrong_flag_is_named_as_its_setting():
    with pytest.raises(ConfigError, match=r"^VESTNIK_PORT must be a whole number from 0 to 65535, got '-1'\.$"):
        load(port=-1)


def test_oldest_agents_are_a_list(monkeypatch):
    monkeypatch.setenv("VESTNIK_OLDEST_AGENTS", "gosapp-android/2.10, gosapp-ios/3")
    assert load().oldest_agents == ("gosapp-android/2.10", "gosapp-ios/3")


def test_the_data_directory_must_not_be_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^VESTNIK_DATA must be a directory, got "):
        load(data=tmp_path / "file")


def test_a_file_of_settings_that_is_no_text(tmp_path):
    (tmp_path / ".env").write_bytes(b"VESTNIK_PORT=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"^The settings file \.env cannot be read"):
        load()


def test_every_number_refuses_garbage_and_every_setting_explains_itself():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        if field.annotation in (int, float):
            with pytest.raises(ConfigError, match=f"^{PREFIX}{name.upper()} must be a (whole )?number .*, got 'x'.$"):
                load(**{name: "x"})


def test_unknown_names_are_told_with_the_nearest_one(tmp_path):
    (tmp_path / ".env").write_text("VESTNIK_WINDWO=1\n")
    told = unknown(
        {"VESTNIK_PROT": "1", "VESTNIK_SECRET": "s", "vestnik_port": "1", "PATH": "x", "VESTNIK_QQQQQQQQQQ": ""}
    )
    assert told == [
        "VESTNIK_PROT is no setting and was ignored; did you mean VESTNIK_PORT?",
        "VESTNIK_QQQQQQQQQQ is no setting and was ignored.",
        "VESTNIK_WINDWO is no setting and was ignored; did you mean VESTNIK_WINDOW?",
    ]


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("https://LK.example.ru", "https://lk.example.ru"),
        ("https://lk.example.ru:443/", "https://lk.example.ru"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://lk.example.ru/path", None),
        ("null", None),
        ("file://", None),
        ("*", None),
        ("", None),
        ("https://a.ru\n", "https://a.ru"),
        ("https://a.ru https://b.ru", None),
    ],
)
def test_origins_are_compared_as_a_browser_writes_them(given, normal):
    assert normal_origin(given) == normal


def test_the_gateways_own_pages_may_open_a_socket():
    own = load(origins="https://lk.example.ru").allowed_origins()
    assert {"http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080", "https://lk.example.ru"} <= own
    assert "http://127.0.0.1:9000" in load(port=0).allowed_origins(9000)
    assert "http://localhost:8080" not in load(host="push.example.ru").allowed_origins()
    assert "https://push.example.ru" in load(host="push.example.ru", port=443).allowed_origins()


def test_the_page_says_what_the_code_says():
    page = Path(settings.__file__).with_name("SETTINGS.md")
    assert page.read_text() == settings.document(), "run: python -m gateway.settings > gateway/SETTINGS.md"
    for name in Settings.model_fields:
        assert f"\n## {PREFIX}{name.upper()}\n" in page.read_text()
