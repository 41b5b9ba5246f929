"""What is in a bundle, for people and programs: its model, its files, where it comes from."""

from dataclasses import asdict, dataclass
from pathlib import Path

from sfn_rt.backends.base import TensorSpec
from sfn_rt.bundle import FULL, MANIFEST, Bundle, PartEntry, load_bundle
from sfn_rt.printable import printable

LABEL = 16  # characters before a value


@dataclass(frozen=True)
class BundleInfo:
    """A bundle whose every file was compared with its checksum, and the files' sizes."""

    bundle: Bundle
    sizes: dict[str, int]  # file -> bytes; the manifest is one of them

    def text(self) -> str:
        manifest = self.bundle.manifest
        pre = manifest.preprocessing
        origin = manifest.provenance
        total = sum(self.sizes.values())
        n_files = len(self.sizes)
        lines = [
            row("bundle", f"{self.bundle.folder}: {n_files} files, {megabytes(total)}, all intact"),
            row(
                "model",
                f"{manifest.system}, profile {manifest.profile}, exported by "
                f"sfn {manifest.sfn_version}, schema {manifest.schema_version}",
            ),
            row("frames", f"{self.clips()}, at {pre.width} x {pre.height} ({pre.resize})"),
            row("captions", self.captions()),
            *self.without_files(),
            row(
                "score",
                f"{' + '.join(manifest.score.terms)}, smoothed with alpha "
                f"{manifest.score.ema_alpha:g}",
            ),
            row(
                "threshold",
                f"{manifest.score.threshold:.4g} for {manifest.score.false_alarms_per_hour:g} "
                f"false alarms an hour: {manifest.score.rule}",
            ),
            row(
                "trained on",
                f"{origin.data}: {origin.n_videos} videos, {origin.n_frames} frames, "
                f"seed {origin.seed}, configuration {origin.config_sha256[:12]}",
            ),
            row("precisions", self.precisions()),
            *(row("licence", f"{part}: {name}") for part, name in origin.licences.items()),
            "",
        ]
        for name, part in manifest.parts.items():
            lines += self.part(name, part)
        if manifest.vlm is not None:
            for name, part in manifest.vlm.parts.items():
                lines += self.part(f"vlm {name}", part)
        for name, part in manifest.device.items():
            lines += self.part(f"dev {name}", part)
        return "\n".join(lines)

    def precisions(self) -> str:
        """What the model can run in, and what each cost where it was calibrated."""
        lower = [
            f"{name} ({', '.join(f'{figure} {value:.4g}' for figure, value in p.gate.items())})"
            for name, p in self.bundle.manifest.precisions.items()
        ]
        return ", ".join([FULL, *lower])

    def clips(self) -> str:
        manifest = self.bundle.manifest
        if manifest.lag:
            return (
                f"{manifest.observed} seen, the one {manifest.lag} before the newest scored by its "
                f"reconstruction"
            )
        return f"{manifest.observed} observed, the next predicted"

    def captions(self) -> str:
        semantics = self.bundle.manifest.semantics
        if semantics is None:
            return f"none: {self.bundle.manifest.system} knows pictures only"
        if semantics.text is None:
            return "none: trained without the semantic branch"
        windows = f" of each window ({', '.join(map(str, semantics.windows))} frames)"
        return (
            f"{semantics.captioner}, one{windows if len(semantics.windows) > 1 else ''} for "
            f"{semantics.stride} frames, embedded by {semantics.text.model} in "
            f"{semantics.text.width} numbers"
        )

    def student(self) -> str:
        """Whether the semantic term can do without captions."""
        parts = self.bundle.manifest.parts
        given = {tensor.name for part in parts.values() for tensor in part.outputs}
        if "distilled" in given:
            return "expects the semantic error where there is no caption"
        return "none: `python -m sfn_train distil RUN` adds one to a run"

    def without_files(self) -> list[str]:
        """What stands in for captions, and what makes them on the device."""
        vlm, semantics = self.bundle.manifest.vlm, self.bundle.manifest.semantics
        if semantics is None:
            return []
        student = row("student", self.student())
        if vlm is None:
            return [student]
        counts = semantics.captions == vlm.origin
        use = "the model was trained on its captions" if counts else "its captions only explain"
        return [
            student,
            row(
                "vlm",
                f"{vlm.model} ({vlm.origin.model[:12]}): {use}; {vlm.frames} frames of "
                f"{vlm.tile.width} x {vlm.tile.height}, at most {vlm.max_tokens} tokens",
            ),
            row("prompt", vlm.origin.prompt),
        ]

    def part(self, name: str, part: PartEntry) -> list[str]:
        """The files of one part, the default marked, and what goes in and comes out."""
        variants = [
            f"{variant}{'*' if variant == part.default and len(part.files) > 1 else ''} "
            f"{file} {megabytes(self.sizes[file])}"
            for variant, file in part.files.items()
        ]
        lines = [row(name, ", ".join(variants))]
        lines += [row("", f"<- {signature(spec)}") for spec in part.inputs]
        lines += [row("", f"-> {signature(spec)}") for spec in part.outputs]
        return lines

    def to_json(self) -> dict[str, object]:
        return {
            "bundle": str(self.bundle.folder),
            "bytes": sum(self.sizes.values()),
            "sizes": self.sizes,
            "manifest": asdict(self.bundle.manifest),
        }


def inspect_bundle(path: Path) -> BundleInfo:
    """Open a bundle, checking every file against the manifest."""
    bundle = load_bundle(path, verify=True)
    names = [MANIFEST, *sorted(bundle.manifest.files)]
    return BundleInfo(bundle, {name: bundle.path(name).stat().st_size for name in names})


def row(label: str, value: str) -> str:
    """One line; names and rules come from the manifest, so nothing in them may steer a terminal."""
    return f"{printable(label):<{LABEL}}{printable(value)}"


def signature(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}[{', '.join(str(axis) for axis in spec.shape)}]"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
