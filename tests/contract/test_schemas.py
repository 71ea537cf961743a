"""The generated documents are fresh, sound, and say the same as the models they come from."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import BaseModel, ValidationError

from warren.bus.topology import topology
from warren.cli.schemas import MODELS, asyncapi, json_schemas, write
from warren.settings import Settings
from warren_schemas import STATES, Event, Kind, State, Task

COMMITTED = Path(__file__).parents[2] / "schemas"
SCHEMAS = json_schemas()
DOCUMENT = asyncapi()
MESSAGES = DOCUMENT["components"]["messages"]

TASK: dict[str, Any] = {
    "version": 1,
    "task_id": "01932c07-209c-7b1f-8e4a-5f6d0c9b7a31",
    "agent_type": "summarise",
    "payload": None,
}


def generated_files(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("json/*"), *folder.glob("*.yaml"), *folder.glob("*.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(schema, format_checker=FormatChecker())


def accepted(model: type[BaseModel], message: Any) -> bool:
    try:
        model.model_validate(message)
    except ValidationError:
        return False
    return True


def resolve(pointer: str) -> Any:
    """What a local reference points to. Raises KeyError when that is nothing."""
    here: Any = DOCUMENT
    for word in pointer.removeprefix("#/").split("/"):
        here = here[word]
    return here


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from references(item)


class TestFiles:
    def test_are_the_ones_that_the_models_give_today(self, tmp_path: Path) -> None:
        write(tmp_path)
        fresh, committed = generated_files(tmp_path), generated_files(COMMITTED)
        assert sorted(fresh) == sorted(committed)
        stale = [name for name, content in fresh.items() if committed[name] != content]
        assert not stale, "write them again: warren.schemas.write(Path('schemas'))"

    def test_write_tells_what_it_wrote(self, tmp_path: Path) -> None:
        written = {str(path.relative_to(tmp_path)) for path in write(tmp_path)}
        assert written == set(generated_files(tmp_path))

    def test_the_yaml_reads_back_as_the_document(self) -> None:
        assert yaml.safe_load((COMMITTED / "asyncapi.yaml").read_text("utf-8")) == DOCUMENT


class TestJsonSchemas:
    @pytest.mark.parametrize("name", MODELS)
    def test_is_itself_valid_and_named_after_its_file(self, name: str) -> None:
        Draft202012Validator.check_schema(SCHEMAS[name])
        assert SCHEMAS[name]["$id"] == f"{name}.schema.json"

    @pytest.mark.parametrize("name", MODELS)
    def test_examples_pass_the_schema_and_the_model(self, name: str) -> None:
        examples = SCHEMAS[name]["examples"]
        assert examples
        for example in examples:
            validator(SCHEMAS[name]).validate(example)
            MODELS[name].model_validate(example)

    @pytest.mark.parametrize("name", MODELS)
    def test_what_a_model_writes_passes_its_schema(self, name: str) -> None:
        for example in SCHEMAS[name]["examples"]:
            written = MODELS[name].model_validate(example).model_dump(mode="json", by_alias=True)
            validator(SCHEMAS[name]).validate(written)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("version", 2),
            ("task_id", "seven"),
            ("agent_type", "Summarise"),
            ("agent_type", "a.b"),
            ("agent_type", "a" * 64),
            ("user_id", ""),
            ("user_id", "u" * 256),
            ("priority", "asap"),
            ("timeout_s", 0),
            ("idempotency_key", "k" * 256),
            ("metadata", {"tries": 3}),
        ],
    )
    def test_schema_and_model_refuse_the_same_tasks(self, field: str, value: object) -> None:
        task = TASK | {field: value}
        assert not accepted(Task, task)
        assert not validator(SCHEMAS["task"]).is_valid(task)

    @pytest.mark.parametrize("missing", ["version", "task_id", "agent_type", "payload"])
    def test_schema_and_model_ask_for_the_same_fields(self, missing: str) -> None:
        task = {name: value for name, value in TASK.items() if name != missing}
        assert not accepted(Task, task)
        assert not validator(SCHEMAS["task"]).is_valid(task)

    @pytest.mark.parametrize("kind", STATES)
    @pytest.mark.parametrize("subject", ["browse", "Node-1", "a.b"])
    def test_schema_and_model_agree_on_every_kind_of_event(self, kind: Kind, subject: str) -> None:
        states: set[State] = {state for states in STATES.values() for state in states}
        for state in states:
            event = SCHEMAS["event"]["examples"][0] | {"kind": kind, "state": state, "subject": subject}
            assert validator(SCHEMAS["event"]).is_valid(event) == accepted(Event, event), state


class TestAsyncApi:
    def test_every_reference_resolves(self) -> None:
        found = list(references(DOCUMENT))
        assert found
        for reference in found:
            assert resolve(reference) is not None

    @pytest.mark.parametrize("name", DOCUMENT["operations"])
    def test_an_operation_uses_messages_of_its_own_channel(self, name: str) -> None:
        operation = DOCUMENT["operations"][name]
        assert operation["action"] in {"send", "receive"}
        for part in (operation, operation.get("reply")):
            if part is not None:
                channel = part["channel"]["$ref"]
                assert channel.startswith("#/channels/")
                assert part["messages"]
                assert all(ref["$ref"].startswith(f"{channel}/messages/") for ref in part["messages"])

    @pytest.mark.parametrize("name", DOCUMENT["channels"])
    def test_a_channel_explains_exactly_the_parameters_of_its_address(self, name: str) -> None:
        channel = DOCUMENT["channels"][name]
        in_address = re.findall(r"{(\w+)}", channel["address"] or "")
        assert sorted(in_address) == sorted(channel.get("parameters", {}))

    @pytest.mark.parametrize("name", MESSAGES)
    def test_examples_pass_the_schemas_and_the_model(self, name: str) -> None:
        message = MESSAGES[name]
        model = {m.__name__: m for m in MODELS.values()}[message["payload"]["$ref"].rpartition("/")[2]]
        assert message["examples"]
        for example in message["examples"]:
            for part in ("headers", "payload"):
                if part in message:
                    validator({"components": DOCUMENT["components"], **message[part]}).validate(example[part])
            model.model_validate(example["payload"])

    def test_an_event_s_routing_key_fits_the_address_of_its_channel(self) -> None:
        for example in SCHEMAS["event"]["examples"]:
            event = Event.model_validate(example)
            address = DOCUMENT["channels"][f"{event.kind}Events"]["address"]
            assert re.fullmatch(re.sub(r"{\w+}", "[^.]+", address), event.routing_key)

    def test_has_a_channel_for_every_exchange_and_queue(self) -> None:
        bindings = [channel["bindings"]["amqp"] for channel in DOCUMENT["channels"].values()]
        described = {binding.get("exchange", binding.get("queue"))["name"] for binding in bindings}
        declared = topology(["{agent_type}"], "quorum", Settings())
        names = {exchange.name for exchange in declared.exchanges} | {queue.name for queue in declared.queues}
        assert described - {""} == names

    def test_examples_name_a_task_the_same_in_headers_and_body(self) -> None:
        for example in MESSAGES["Task"]["examples"]:
            assert UUID(example["headers"]["message_id"]) == UUID(example["payload"]["task_id"])
