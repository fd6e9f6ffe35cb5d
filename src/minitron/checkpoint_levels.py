"""Levels of a checkpoint, without a full-precision file between that stays.

What the converter reads is what the quantizer encodes (minitron.level_conversion). Only calibration
needs the full-precision file, since llama.cpp runs it: it is written for it, hidden beside the
outputs, and removed after it. The bytes are those of converting, calibrating and quantizing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minitron.calibration import imatrix, imatrix_key
from minitron.conversion import convert
from minitron.level_conversion import PlannedRows, header_alone
from minitron_convert.checkpoint.file_names import files_of
from minitron_convert.convert import ConvertSettings, plan
from minitron_convert.hub.download import open_source
from minitron_convert.hub.source import Source
from minitron_convert.plan import Plan
from minitron_core.errors import AlreadyExists, OutOfResources, from_os_error
from minitron_core.file_lock import exclusive
from minitron_core.gguf import Gguf, TensorInfo, file_size
from minitron_core.made_from import (
    forget_inputs,
    is_made_from,
    record_inputs,
)
from minitron_core.progress import Progress, ignore
from minitron_engine.llama.settings import EVERY_GPU, GpuLayers, ModelSettings, Placement
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_texts
from minitron_quant.decode_forecast import decode_seconds
from minitron_quant.imatrix.collect import CollectSettings
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.plan import level_metadata, make_plan
from minitron_quant.quantize.prepare import (
    ConvertedSource,
    QuantizeSettings,
    folder_of,
    model_name,
)
from minitron_quant.quantize.summary import free_bytes


@dataclass(frozen=True)
class Calibration:
    """The texts to calibrate on before quantizing, and how the model runs meanwhile."""

    texts: tuple[Path, ...]
    chunks: ChunkSettings = ChunkSettings()
    gpu_layers: GpuLayers = "auto"
    placement: Placement = EVERY_GPU

    def collect(
        self, model: Path, output: Path, *, replaces: bool = False, progress: Progress = ignore
    ) -> Path:
        """Write the importance matrix of a GGUF model, unless `output` was made from the same.

        Raises AlreadyExists for a matrix of something else, unless `replaces`; and as imatrix().
        """
        key = self.key([shard.path for shard in open_model_files(model)])
        if not self.is_there(output, key, replaces):
            self.run(model, output, key, progress)
        return output

    def forecast(self, shards: Sequence[Gguf]) -> float:
        """Seconds that this machine's processors take. Errors: as imatrix(), for the texts."""
        with open_model(ModelSettings(shards[0].path, vocab_only=True)) as model:
            tokens = chunk_texts(model, self.texts, self.chunks).size
        return decode_seconds(shards, tokens, 0, self.chunks.n_ctx, self.chunks.threads)

    def key(self, model: Sequence[Path]) -> str:
        """One hash over everything that decides the matrix; model: the files of its weights."""
        return imatrix_key(model, CollectSettings(self.texts, self.chunks), "gguf", None)

    def is_there(self, output: Path, key: str, replaces: bool) -> bool:
        """Whether the matrix is made already. AlreadyExists: of something else."""
        if is_made_from([output], key):
            return True
        if output.exists() and not replaces:
            raise AlreadyExists(
                f"{output} exists and was made from something else",
                f"--imatrix {output} uses it; --force replaces it",
            )
        return False

    def run(self, model: Path, output: Path, key: str, progress: Progress) -> None:
        """Collect and write the matrix. Errors: as imatrix()."""
        settings = CollectSettings(self.texts, self.chunks)
        imatrix(
            model,
            output,
            settings,
            gpu_layers=self.gpu_layers,
            placement=self.placement,
            progress=progress,
        )
        record_inputs([output], key)


@dataclass(frozen=True)
class CheckpointModel:
    """A planned conversion that is quantized without being written."""

    source: Source
    planned: Plan
    converted: ConvertedSource

    @property
    def path(self) -> Path:
        """What stands for the model in QuantizeSettings, beside `converted` in quantize()."""
        return self.converted.header.path

    @property
    def name(self) -> str:
        """The model's name, with which its files begin."""
        return model_name(self.path)

    def calibrate(
        self,
        calibration: Calibration,
        folder: Path,
        *,
        full: Path | None = None,
        replaces: bool = False,
        progress: Progress = ignore,
    ) -> Path:
        """The importance matrix in `folder`; kept if it was made from the same.

        full: the full-precision file; without it, one is there until the matrix is made.
        Raises as Calibration.collect.
        """
        output = folder / f"{self.name}.imatrix.gguf"
        key = calibration.key(self.converted.files)
        with _working_in(folder, self.name):
            if calibration.is_there(output, key, replaces):
                return output
            if full is not None:
                calibration.run(full, output, key, progress)
                return output
            temporary = folder / f".{self.name}.calibration.gguf"
            try:
                self._convert(temporary, progress, replaces=True)
                calibration.run(temporary, output, key, progress)
            finally:
                # one of a killed run is replaced by the next, under the same name
                temporary.unlink(missing_ok=True)
                forget_inputs(temporary)
        return output

    def write_full(self, folder: Path, *, replaces: bool, progress: Progress = ignore) -> Path:
        """The full-precision file in `folder`, which is kept if it was made from the same."""
        with _working_in(folder, self.name):
            path = folder / self.converted.header.path.name
            return self._convert(path, progress, replaces=replaces)

    def check_disk(self, settings: QuantizeSettings, *, keeps_full: bool, runs: bool) -> None:
        """Raise OutOfResources if the disk is too small for what is still to be written.

        keeps_full: the full-precision file stays. runs: it is needed to calibrate.
        """
        folder, header = folder_of(settings), self.converted.header
        chosen = make_plan([header], settings.levels, settings.options, imatrix=True)
        outputs = 0
        for each in chosen.levels:
            path = settings.output or folder / f"{self.name}-{each.level.name}.gguf"
            metadata = level_metadata(header, each.level, settings.options.overrides, ())
            outputs += 0 if path.exists() else file_size(metadata, chosen.specs(each))
        full = self.planned.bytes if keeps_full or runs else 0
        # a file that is there only to calibrate is gone before levels are written
        needed = outputs + full if keeps_full else max(outputs, full)
        free = free_bytes(folder)
        if needed > free:
            raise OutOfResources(
                f"{folder} has {free / 1e6:,.0f} MB free; levels and the full-precision file need "
                f"{needed / 1e6:,.0f}",
                "free some space, choose another folder with -d, or fewer levels",
            )

    def _convert(self, path: Path, progress: Progress, *, replaces: bool) -> Path:
        source = self.source
        settings = ConvertSettings(source.folder, path, name=source.name, force=replaces)
        return convert(settings, progress).paths[0]


@contextmanager
def open_checkpoint_model(
    checkpoint: str | Path, progress: Progress = ignore
) -> Iterator[CheckpointModel]:
    """A checkpoint as a source of levels: a folder, or owner/name[@revision] on the Hub.

    Errors: as minitron.convert's, and those of a download.
    """
    source = open_source(str(checkpoint), None, progress)
    planned = plan(ConvertSettings(source.folder, name=source.name))
    rows = {tensor.spec.name: PlannedRows(tensor) for tensor in planned.files[0].tensors}

    def read(info: TensorInfo) -> PlannedRows:
        return rows[info.name]

    with header_alone(planned.files[0], vectors=True) as header:
        converted = ConvertedSource(header, read, files_of(source.folder))
        yield CheckpointModel(source, planned, converted)


@contextmanager
def _working_in(folder: Path, name: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder, "write") from error
    with exclusive(folder / f".{name}.calibration.lock"):
        yield
