"""Secrets in arguments and variables: gone; everything else: still there."""

from __future__ import annotations

import pytest

from ckptfmt.checks import redact

S = "hunter2/x+y="  # the secret of every case

SECRET_TEXTS = [
    f"--password={S}",
    f"--db-pass={S}",
    f"--dbPassword={S}",
    f"--DBPASSWORD={S}",
    f"--token={S}",
    f"--hftoken={S}",
    f"HF_TOKEN={S}",
    f"--api-key={S}",
    f"--apikey={S}",
    f"--config.wandb.api_key={S}",
    f"+trainer.logger.apiKey={S}",
    f"AWS_SECRET_ACCESS_KEY={S}",
    f"AWSAccessKeyId={S}",
    f"--tokens={S},{S}",
    f"--keys={S}",
    "--key=12345678",
    f"/password:{S}",
    f"--password:={S}",
    f"--password=a {S}",
    f"--password=a,b={S}",
    f"--opts=lr=1,password=a,{S}",
    f"--set=db.password: {S}",
    f'{{"lr": 1, "token": "{S}"}}',
    f"{{'lr': 1, 'client_secret': '{S}'}}",
    f"auth[token]={S}",
    f"X-Api-Key: {S}",
    f"Authorization: Bearer {S}",
    f"authorization=Basic {S}",
    f"Bearer {S}",
    f"bash -c 'run --token {S}'",
    f"run --db-password  {S} --lr 1",
    f"https://host/path?x=1&token={S}&y=2",
    f"https://host/path?api%5Fkey={S}",
    f"https://host/b?X-Amz-Credential=a&X-Amz-Signature={S}",
    f"https://acc.blob.net/c?sv=1&sig={S}",
    f"https://user:{S}@host/path",
    f"https://user:a@{S}@host/path",
    f"s3://AKID:{S}@bucket/runs",
    f"https://:{S}@host/",
    f"redis://:{S}@host:6379/0",
    f"a://host/x,b://user:{S}@host/",
    f"https://u:a://{S}@host",
    f"user:{S}@host:22/path",
    f"DefaultEndpointsProtocol=https;AccountName=n;AccountKey={S};",
    f"Server=h;Uid=me;Pwd={S};",
    f"--dsn={S}",
    f"--webhook={S}",
]


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_secret_is_gone(text: str) -> None:
    recorded = redact.text(text)

    assert S not in recorded
    assert "hunter2" not in recorded
    assert "12345678" not in recorded
    assert redact.argv(["run.py", text])[1] == recorded


TOKENS = [
    "hf_" + "a1B2" * 8,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2_" * 8,
    "glpat-" + "a1-B" * 6,
    "sk-" + "proj-a1B2" * 4,
    "xoxb-123456-abcdef",
    "AKIA" + "ABCD1234" * 2,
    "AIza" + "a1_B" * 9,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_x",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("template", ["{}", "--name={}", "x {} y", "https://host/{}/z"])
def test_token_is_known_by_its_shape(token: str, template: str) -> None:
    recorded = redact.text(template.format(token))

    assert token not in recorded
    assert redact.MASK in recorded
    assert "MIIE" not in recorded


PLAIN_TEXTS = [
    "train.py",
    "--lr=0.1",
    "--max-tokens=2048",
    "--max_token_length=512",
    "--model.key_dim=64",
    "--optimizer.betas=[0.9,0.999]",
    "--num-keys=12",
    '{"lr": 0.1, "max_tokens": 512}',
    "tokenizer=gpt2",
    "TOKENIZERS_PARALLELISM=false",
    "--monkey=3",
    "--author=me",
    "--compass=north",
    "task-abcdefghijklmnopqrstuvwxyz",
    "s3://bucket/runs/a@12",
    "s3://bucket/runs/a@best:val_loss",
    "http://host:9000/runs/a@12",
    "http://[::1]:9000/a@1",
    "file:///data/x/run@12",
    "file://C:/runs/x",
    "C:\\runs\\x",
    "git@host:repo",
    "runs/a@best:val_loss:max",
    "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0",
    "7f2c1d0e9b8a7f2c1d0e9b8a7f2c1d0e9b8a7f2c",
    "日本語 = ok",
]


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact.text(text) == text
    assert redact.argv([text]) == [text]


@pytest.mark.parametrize(
    ("url", "recorded"),
    [
        ("https://user:pw@host/path?x=1", "https://host/path?x=1"),
        ("https://user@host/path", "https://host/path"),
        ("ssh://git@host/x and ssh://me@other/y", "ssh://host/x and ssh://other/y"),
        ("user:pw@host:22/x", "host:22/x"),
        ("--url=s3://k:p/q@bucket/a", "--url=s3://bucket/a"),
    ],
)
def test_only_the_credentials_leave_a_url(url: str, recorded: str) -> None:
    assert redact.text(url) == recorded


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        ("--password x --lr 1", "--password *** --lr 1"),
        ("--password -x --lr 1", "--password *** --lr 1"),
        ("--tokens a b c --lr 1", "--tokens *** *** *** --lr 1"),
        ("--token --password x", "--token --password ***"),
        ("--use-auth-token --lr 1", "--use-auth-token *** ***"),
        ("--use-auth-token --lr 1 --bs 2", "--use-auth-token *** *** --bs 2"),
        ("--max-tokens 2048 --lr 1", "--max-tokens 2048 --lr 1"),
        ("--max-tokens a", "--max-tokens ***"),
        ("--key 12345678", "--key ***"),
        ("--key_dim 64 x", "--key_dim 64 x"),
        ("--password=x y --lr 1", "--password=*** y --lr 1"),
        ("--lr 1 --password", "--lr 1 --password"),
        ("-token x", "-token ***"),
        ("token x", "token x"),
    ],
)
def test_values_after_secret_like_flags_are_masked(arguments: str, recorded: str) -> None:
    assert " ".join(redact.argv(arguments.split(" "))) == recorded


def test_arguments_that_are_not_text_are_recorded_as_text() -> None:
    assert redact.argv([1, None]) == ["1", "None"]
    assert redact.argv([]) == []


def test_arguments_are_counted_out() -> None:
    recorded = redact.argv([str(number) for number in range(redact.MAX_ARGUMENTS + 7)])

    assert len(recorded) == redact.MAX_ARGUMENTS + 1
    assert recorded[-2:] == ["199", "... and 7 more"]


def test_long_text_goes_altogether() -> None:
    assert redact.text("x" * redact.MAX_TEXT_LENGTH) == "x" * redact.MAX_TEXT_LENGTH
    assert redact.text("x" * 3000 + "https://user:pw@host") == "*** (3020 characters)"


@pytest.mark.parametrize("text", ["\udcff", "a\ud800b", "\udc80=1"])
def test_what_utf8_cannot_encode_is_escaped(text: str) -> None:
    recorded = redact.text(text)

    assert recorded == text.encode("ascii", "backslashreplace").decode()
    assert redact.argv([text]) == [recorded]
