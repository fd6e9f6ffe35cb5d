"""What the routes serve."""

from dataclasses import dataclass, field

from minitron_cli.server.metrics import Metrics
from minitron_cli.server.prepare import ServerDefaults
from minitron_cli.server.worker import Worker
from minitron_engine.generation.embeddings import Embedder
from minitron_engine.isolation.chat_template import ChatTemplate
from minitron_engine.llama.model import Model


@dataclass(frozen=True)
class Service:
    """A model and how it is served.

    template: None where the model has none. api_key: empty for none. origins: web pages beside
    those of this machine that may ask; * for all. embedder: None where the model gives no
    embeddings.
    """

    name: str
    model: Model
    template: ChatTemplate | None
    worker: Worker
    api_key: str = ""
    origins: tuple[str, ...] = ()
    defaults: ServerDefaults = field(default_factory=ServerDefaults)
    embedder: Embedder | None = None
    metrics: Metrics = field(default_factory=Metrics)
