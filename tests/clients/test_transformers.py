"""
Owns the acceptance case of transformers: what it asks for beyond files, and how it loads again.

Knows nothing of models; configuration and tokenizer need no tensor library.
Invariants: the release is the newest one, in an environment of its own.
Source: acceptance case 21 of the hub protocols.
"""

from __future__ import annotations

from tests.clients.conftest import LONG, MakeClient, MakeDaemon, ask
from tests.clients.samples import Sample
from tests.hub import HubProcess

ENVIRONMENT = "transformers"
OPTIONAL = ("additional_chat_templates", "chat_template.jinja")


def load(sample: Sample) -> str:
    """Return a script that loads the configuration and the tokenizer, and uses both."""
    word = f"word{sample.repo.rpartition('-')[2]}"
    return f"""
        from transformers import AutoConfig, AutoTokenizer
        config = AutoConfig.from_pretrained({sample.repo!r})
        tokenizer = AutoTokenizer.from_pretrained({sample.repo!r})
        result = [config.model_type, config.seed, tokenizer("hello {word} none")["input_ids"]]
    """


@LONG
def test_case_21_transformers_loads_and_loads_again_without_the_hub(
    hub: HubProcess, make_daemon: MakeDaemon, sample: Sample, make_client: MakeClient
) -> None:
    """AutoConfig and AutoTokenizer, first with the hub, then for another user without it."""
    daemon = make_daemon("a")
    expected = ["bert", int(sample.repo.rpartition("-")[2]), [1, 2, 0]]
    first = make_client(daemon, ENVIRONMENT)
    assert first.run(load(sample)) == expected
    folder = first.cache / f"models--{sample.repo.replace('/', '--')}"
    absent = {p.name for p in (folder / ".no_exist" / sample.commit).iterdir()}
    assert absent, "what a model has not is remembered by its commit, and not asked for again"
    path = f"/api/models/{sample.repo}/tree/main/{OPTIONAL[0]}?recursive=false&expand=false"
    status, headers, _ = ask(daemon, path)
    assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")
    connections = len(first.list_connections())
    assert first.run(load(sample)) == expected
    assert len(first.list_connections()) <= 2 * connections
    hub.set_listening(hub=False, cdn=False)
    assert make_client(daemon, ENVIRONMENT).run(load(sample)) == expected
    assert ask(daemon, path)[0] == 404
