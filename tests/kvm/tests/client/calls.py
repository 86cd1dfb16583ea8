"""Calls through the generated client, and which operations of the document were called how.

What was called is taken from the requests and answers themselves, by method and path.
"""

import importlib
import json

import httpx
from umbra_client import Client

ROOT = "/api/v1"
# For one answer: the guest, and the processor that it runs on, are emulated.
PATIENCE = 300


class Calls:
    def __init__(self, socket, document):
        self.operations = {
            (method, path): operation
            for path, item in json.loads(document)["paths"].items()
            for method, operation in item.items()
        }
        self.answered = {}
        self.client = Client(
            base_url="http://localhost" + ROOT,
            timeout=httpx.Timeout(PATIENCE),
            verify_ssl=False,
            raise_on_unexpected_status=True,
            httpx_args={
                "transport": httpx.HTTPTransport(uds=socket),
                "event_hooks": {"response": [self.note]},
            },
        )

    def note(self, response):
        request = response.request
        operation = (request.method.lower(), request.url.path.removeprefix(ROOT))
        assert operation in self.operations, f"the document has no {operation}"
        self.answered.setdefault(operation, set()).add(response.status_code)

    def operation(self, name):
        """The generated module of an operation."""
        return importlib.import_module("umbra_client.api.default." + name.replace(".", "_").replace("-", "_"))

    def does(self, name, status=200, **arguments):
        """An operation that must be answered with this status; the answer as the client parses it."""
        answer = self.operation(name).sync_detailed(client=self.client, **arguments)
        assert answer.status_code == status, f"{name}: {status} expected: {answer.status_code} {answer.content}"
        return answer.parsed

    def refuses(self, name, status, words, **arguments):
        """An operation that must be refused, with this in the chain of causes."""
        chain = self.does(name, status, **arguments)
        assert isinstance(chain, list) and all(isinstance(text, str) for text in chain), f"{name}: {chain}"
        assert any(words in text for text in chain), f"{name}: {words!r} is not in {chain}"

    def streams(self, name, **headers):
        """An operation whose answer is not for the parser: the client's own request and connection."""
        return self.client.get_httpx_client().stream(**self.operation(name)._get_kwargs(), headers=headers)

    def never_successful(self):
        """Operations that the document has no success for."""
        return [described["operationId"] for described in self.operations.values() if not successes(described)]

    def left_out(self):
        """Operations that were not called, or never with success where the document has one; and their answers."""
        for operation, described in self.operations.items():
            answers = self.answered.get(operation, set())
            if not answers or successes(described) and not answers & successes(described):
                yield described["operationId"], sorted(answers)


def successes(described):
    """The statuses for success that the document gives an operation."""
    return {int(status) for status in described["responses"] if status.startswith("2")}
