"""Encodes rows of source images, instructions and edited images into shards; see `distill.data.encoding`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.data.conditions import non_finite_rows
from distill.data.encoding import Encoder
from distill.data.images import Images, Row
from distill.data.shards import Table
from teachers.loading.sources import read_source
from teachers.support.text import printable

COND = "cond/"  # prefix of the tensors of the condition


class SourceEncoder(Encoder):
    """An `Encoder` for teachers with source images: each row of the data has a condition of its own.

    Attributes:
        targets: Whether the edited images are encoded too.
    """

    targets = True

    def encode_rows(self, images: Images) -> tuple[list[str], Table, Table | None]:
        """Encode all readable rows, and the condition of the empty prompt.

        Args:
            images: Their source.

        Returns:
            The instructions, the conditions, one row for each instruction, and the latents of the edited images as "x".

        Raises:
            ValueError: If no row is readable.
        """
        self.encode_captions([])
        before = self.written
        stored = self.read_shards(
            images, self.encoder_key("condition") + self.encoder_key("encode") + str(self.targets)
        )
        captions = self.report(stored)
        if self.written > before:
            self.warn_of_cut_prompts(captions)
        device, used = self.accelerator.device, [shard for shard in stored if len(shard["x"])]
        conditions = [
            {name.removeprefix(COND): value for name, value in shard.items() if name.startswith(COND)} for shard in used
        ]
        latents = Table([{"x": shard["x"]} for shard in used], device) if self.targets else None
        return captions, Table(conditions, device), latents

    def read(self, row: Row) -> tuple[list[Tensor], Sequence[str]] | str:
        """The source image of a row and, with targets, its edited image, and notes; or why it cannot be used."""
        image, mask = row.sources
        try:
            if image is None:
                raise ValueError(f"{printable(row.name)} has no source image")
            source = read_source(image, mask, self.teacher.source_shape, row.name)
            if not self.targets:
                if row.caption is None:
                    raise ValueError(f"{printable(row.name)} has no instruction")
                return [source], ()
            target = row.read(self.teacher.medium, captioned=True)
        except ValueError as error:
            return str(error)
        return [source, target.values], target.notes

    def encode_batch(self, rows: Sequence[Row], read: Sequence[list[Tensor]]) -> dict[str, Tensor]:
        with torch.no_grad():
            prompts, sources = [row.caption or "" for row in rows], torch.stack([each[0] for each in read])
            cond = {name: value.cpu() for name, value in self.teacher.source_condition(prompts, sources).items()}
        if wrong := non_finite_rows(cond):
            raise ValueError(
                f"the encoders give NaN or infinite values for {printable(rows[wrong[0]].name)} (of {len(wrong)}); set "
                "teacher.precision to float32 or bfloat16"
            )
        x = super().encode_batch(rows, [each[1:] for each in read])["x"] if self.targets else torch.zeros(len(rows), 1)
        return {"x": x} | {COND + name: value for name, value in cond.items()}
