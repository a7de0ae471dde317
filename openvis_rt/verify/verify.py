"""Does a bundle compute on this machine what PyTorch computed? Every stage, then a whole video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.contract import check_contract
from openvis_rt.errors import DependencyError, InputError, UnavailableError
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.registry import BACKENDS, BackendOptions, open_backend
from openvis_rt.runtime.tracking.rules import check_score
from openvis_rt.verify.checks import AS_BUILT_NAME, Check
from openvis_rt.verify.reference import Reference, read_reference
from openvis_rt.verify.sequence import check_video
from openvis_rt.verify.stages import check_calls, check_class_names, check_host

__all__ = ["AS_BUILT", "Contender", "VerifyReport", "verify_bundle"]

AS_BUILT = "as-built"
"""The graphs as TensorRT compiles them, in ONNX Runtime on the CPU; those alone that differ."""

STAGES = (
    *("text", "class names", "embed", "propose", "classify", "masks"),
    *("tracker", "score", "video"),
)
"""In the order in which a video meets them; the first that departs is where to look."""

Progress = Callable[[str, int, int], None]


@runtime_checkable
class Changing(Protocol):
    """A backend that runs some graphs otherwise than the bundle has them."""

    def changed(self, bundle: Bundle, precision: str) -> list[str]:
        """Those graphs; the others need no second look."""


@dataclass(frozen=True)
class Contender:
    """What is tried: a backend by name, or :data:`AS_BUILT`, and a precision of the bundle."""

    backend: str
    precision: str


@dataclass(frozen=True)
class VerifyReport:
    """What was compared.

    Attributes:
        bundle: its path.
        model: its variant.
        reference: what the reference is, for people.
        contenders: what was tried: names, as in the checks.
        passed_over: what does not work here, and why.
        checks: every comparison, in the order of the stages.
    """

    bundle: str
    model: str
    reference: str
    contenders: tuple[str, ...]
    passed_over: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> list[Check]:
        """Checks outside their gates."""
        return [check for check in self.checks if not check.passed]

    @property
    def first_departure(self) -> Check | None:
        """Of the first stage that departs, the check that is farthest outside its gate."""
        failed = self.failed
        first = min((STAGES.index(check.stage) for check in failed), default=None)
        here = [check for check in failed if STAGES.index(check.stage) == first]
        return min(here, key=lambda check: check.margin, default=None)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        first = self.first_departure
        return {
            "bundle": self.bundle,
            "model": self.model,
            "reference": self.reference,
            "contenders": list(self.contenders),
            "passed_over": self.passed_over,
            "passed": not self.failed,
            "first_departure": None if first is None else first.to_json(),
            "checks": [check.to_json() for check in self.checks],
        }


def verify_bundle(
    bundle: Bundle,
    *,
    reference: Reference | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    options: BackendOptions | None = None,
    video: bool = True,
    progress: Progress = lambda *_: None,
) -> VerifyReport:
    """Compare what works here with a reference.

    Args:
        bundle: the bundle.
        reference: PyTorch's answers; None for those that the bundle has recorded.
        backends: names of :data:`BACKENDS`, or :data:`AS_BUILT`; None for each that works here.
        precisions: of the bundle; None for all.
        options: device and CUDA binding of the backends.
        video: run the recorded video end to end, too.
        progress: told what is compared, the contenders done, and all of them.

    Raises:
        InputError: there is no reference, or no such backend or precision.
        UnavailableError: a backend that was named does not work here, or none at all does.
        BundleError: the manifest is not what an export writes; or the reference is damaged, or of
            another checkpoint.
        BackendError: a backend failed.
    """
    check_contract(bundle.manifest)
    check_score(bundle)
    tried = _contenders(
        bundle, backends, precisions, on_cpu=bool(options and options.device == "cpu")
    )
    reference = reference or read_reference(bundle)
    names, reasons = list[str](), dict[tuple[str, str], list[str]]()
    checks = list(check_host(bundle, reference))
    for done, contender in enumerate(tried):

        def tell(what: str, done: int = done) -> None:
            progress(what, done, len(tried))

        tell(f"opening {contender.backend}, {contender.precision}")
        try:
            backend = _opened(contender, bundle, options)
        except UnavailableError as exc:
            if backends is not None:
                raise
            reasons.setdefault((contender.backend, str(exc)), []).append(contender.precision)
            continue
        names.append(f"{backend.name} ({backend.device}, {contender.precision})")
        checks += _compared(names[-1], bundle, backend, contender.precision, reference, video, tell)
    passed_over = {f"{name} ({', '.join(of)})": why for (name, why), of in reasons.items()}
    usual = [name for name in names if not name.startswith(AS_BUILT_NAME)]
    if (backends is None and not usual) or all(check.contender == "host" for check in checks):
        raise UnavailableError(
            f"nothing that runs {bundle.path} works here, so nothing was compared. "
            + "; ".join(f"{name}: {why}" for name, why in passed_over.items())
        )
    torch = reference.record.tools.get("torch", "unknown")
    return VerifyReport(
        str(bundle.path),
        bundle.manifest.variant,
        f"PyTorch {torch} eager FP32, {reference.origin}",
        tuple(names),
        passed_over,
        tuple(checks),
    )


def _contenders(
    bundle: Bundle,
    backends: Sequence[str] | None,
    precisions: Sequence[str] | None,
    *,
    on_cpu: bool,
) -> list[Contender]:
    """InputError for a precision or a backend that there is not."""
    held, known = tuple(bundle.manifest.graphs), (*BACKENDS, AS_BUILT)
    for precision in precisions or ():
        if precision not in held:
            raise InputError(
                f"{bundle.path} holds no precision {precision!r}; it holds {', '.join(held)}"
            )
    for backend in backends or ():
        if backend not in known:
            raise InputError(
                f"there is no backend {backend!r} to verify; there are: {', '.join(known)}"
            )
    usual = [name for name in known if not (on_cpu and name.startswith("tensorrt"))]
    return [Contender(b, p) for p in precisions or held for b in backends or usual]


def _opened(contender: Contender, bundle: Bundle, options: BackendOptions | None) -> Backend:
    """UnavailableError if it does not work here."""
    if contender.backend == AS_BUILT:
        try:
            from openvis_rt.verify.onnx_rewritten import RewrittenGraphs
        except ImportError as exc:
            raise DependencyError(exc.name or "onnx", "verify") from exc
        return RewrittenGraphs()
    return open_backend(contender.backend, bundle, contender.precision, options)


def _compared(
    name: str,
    bundle: Bundle,
    backend: Backend,
    precision: str,
    reference: Reference,
    video: bool,
    tell: Callable[[str], None],
) -> Iterator[Check]:
    """Every check of one contender, whose backend is closed in the end."""
    with closing(backend):
        graphs = backend.changed(bundle, precision) if isinstance(backend, Changing) else None
        yield from check_calls(name, bundle, backend, precision, reference, tell, graphs)
        if graphs is not None:  # the rest is what the bundle's own graphs compute
            return
        yield from check_class_names(name, bundle, backend, precision, reference)
        if video:
            yield from check_video(name, bundle, backend, precision, reference, tell)
