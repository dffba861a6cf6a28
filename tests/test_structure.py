"""Who may import whom: every module imports only what stands above it in this list."""

import ast
import subprocess
import sys
from pathlib import Path

import svag

ROOT = Path(svag.__file__).parent

FLOORS = (
    ("svag.errors",),
    ("svag.anatomy", "svag.quantity", "svag.notation"),
    ("svag.entrants",),
    ("svag.theory.factors",),
    (
        *("svag.theory.adam", "svag.theory.averages", "svag.theory.signs"),
        "svag.theory.spectra",
    ),
    (
        *("svag.theory.rules", "svag.theory.drift", "svag.theory.sign_factors"),
        "svag.theory.sign_confidence",
    ),
    ("svag.theory.quadratic",),
    ("svag.theory.dynamics", "svag.theory.separable"),
    ("svag.theory.theorem1", "svag.theory.figure2", "svag.theory.wilson"),
    ("svag.theory",),
    ("svag.theory.figures",),
    ("svag.theory.figures.tables",),
    ("svag.theory.figures.canvas",),
    (
        "svag.theory.figures.explorer",
        "svag.theory.figures.figure3_picture",
        "svag.theory.figures.figure4_picture",
        "svag.theory.figures.conditions",
        "svag.theory.figures.p_diag_picture",
        "svag.theory.figures.theorem1_picture",
        "svag.theory.figures.wilson_picture",
    ),
    ("svag.theory.figures.figure2_picture",),
    (
        *("svag.compiled", "svag.compiled.instructions", "svag.compiled.machine_code"),
        "svag.compiled.threads",
    ),
    ("svag.variance.fingerprint",),
    (
        "svag.variance.grad_var",
        "svag.variance.per_example.checks",
        "svag.variance.per_example.contributions",
        "svag.variance.per_example.operations",
        "svag.variance.per_example.recording",
        "svag.variance.per_example.structures",
        "svag.variance.per_example.owners.placement",
        "svag.variance.per_example.contributions.numba_moments",
        "svag.variance.per_example.contributions.recurrent_backward",
    ),
    (
        "svag.variance.per_example.schedule",
        "svag.variance.per_example.recording.compiled_functions",
        "svag.variance.per_example.checks.kept_attributes",
        "svag.variance.per_example.owners.marks",
        "svag.variance.per_example.owners.operation_names",
        "svag.variance.per_example.owners.owner_tensors",
        "svag.variance.per_example.contributions.moments",
    ),
    ("svag.variance.per_example.owners.operation", "svag.variance.per_example.recording.hooked"),
    (
        "svag.variance.per_example.owners.elementwise",
        "svag.variance.per_example.owners.on_owners",
    ),
    (
        "svag.variance.per_example.owners.following",
        "svag.variance.per_example.owners.views",
        "svag.variance.per_example.owners.indexing",
        "svag.variance.per_example.owners.joining",
        "svag.variance.per_example.owners.products",
        "svag.variance.per_example.owners.reductions",
    ),
    (
        "svag.variance.per_example.owners.layers",
        "svag.variance.per_example.owners.linear_algebra",
        "svag.variance.per_example.owners.losses",
        "svag.variance.per_example.owners.writing",
    ),
    ("svag.variance.per_example.owners",),
    ("svag.variance.rescaling",),
    (
        "svag.variance.clipping",
        "svag.variance.unscaling",
        "svag.variance.micro_batches",
        "svag.variance.ranks",
        "svag.variance.noise",
        "svag.variance.per_example.contributions.base",
    ),
    (
        "svag.variance.per_example.contributions.convolution",
        "svag.variance.per_example.contributions.pulled_back",
        "svag.variance.per_example.checks.verification",
    ),
    ("svag.variance.per_example.contributions.weight_norm",),
    ("svag.variance.per_example.recording.sources",),
    ("svag.variance.per_example.recording.taps",),
    ("svag.variance.per_example.recording.recorder",),
    (
        "svag.variance.per_example.recording.derived",
        "svag.variance.per_example.recording.functions",
    ),
    ("svag.variance.per_example.recording.checkpoints",),
    (
        "svag.variance.per_example.recording.interception",
        "svag.variance.per_example.checks.written_parameters",
    ),
    (
        "svag.variance.per_example.inputs",
        "svag.variance.per_example.checks.replacement",
        "svag.variance.per_example.checks.escapes",
        "svag.variance.per_example.operations.layers",
        "svag.variance.per_example.operations.rnn_cells",
        "svag.variance.per_example.operations.embedding_bag",
        "svag.variance.per_example.operations.broadcasting",
        "svag.variance.per_example.operations.expanded",
        "svag.variance.per_example.operations.masked",
    ),
    (
        "svag.variance.per_example.checks.loss_tape",
        "svag.variance.per_example.operations.products",
        "svag.variance.per_example.operations.one_by_one",
        "svag.variance.per_example.operations.custom_functions",
        "svag.variance.per_example.operations.recurrent",
    ),
    ("svag.variance.per_example.passes", "svag.variance.per_example.operations.fallback"),
    ("svag.variance.per_example.context",),
    ("svag.variance.per_example",),
    ("svag.variance",),
    ("svag.optim.rule", "svag.optim.dtensor"),
    ("svag.jax.arithmetic", "svag.jax.rounding", "svag.jax.options", "svag.jax.pairs"),
    ("svag.jax.examples",),
    ("svag.jax.transformation",),
    ("svag.jax.methods",),
    ("svag.jax",),
    ("svag.optim.huge_pages", "svag.optim.moments", "svag.optim.rounding"),
    (
        "svag.optim.options",
        "svag.optim.state",
        "svag.optim.state_translation",
        "svag.optim.restored_step_size",
    ),
    ("svag.optim.engines", "svag.optim.engines.kernel_spec"),
    (
        "svag.optim.engines.half_precision",
        "svag.optim.engines.numba_noise",
        "svag.optim.engines.torch_arithmetic",
        "svag.optim.engines.triton_kernel",
        "svag.optim.engines.work_partition",
    ),
    ("svag.optim.engines.numba_loop", "svag.optim.change_detection"),
    (
        "svag.optim.engines.cpu",
        "svag.optim.engines.cuda",
        "svag.optim.engines.eager",
        "svag.optim.engines.support",
    ),
    ("svag.optim.dispatch", "svag.optim.adaptation"),
    ("svag.optim.optimizer",),
    ("svag.optim.methods",),
    ("svag.optim",),
    (
        *("svag.problems.names", "svag.problems.nested", "svag.problems.seeding"),
        *("svag.problems.user_code", "svag.problems.python_source", "svag.problems.locating"),
        *("svag.problems.data", "svag.problems.models", "svag.problems.schedules"),
        *("svag.problems.augmentation", "svag.problems.unpickling"),
    ),
    ("svag.problems.metric", "svag.problems.steps", "svag.problems.reach"),
    ("svag.problems.cifar_sets",),
    ("svag.problems.problem", "svag.problems.identity", "svag.problems.cifar_decoding"),
    ("svag.problems.cifar_files",),
    ("svag.problems.vision", "svag.problems.text", "svag.problems.registry"),
    ("svag.problems.quadratic",),
    ("svag.problems.cifar",),
    ("svag.problems",),
    ("svag.lab", "svag.lab.folder_lock", "svag.lab.record_format"),
    ("svag.lab.run",),
    ("svag.lab.records",),
    ("svag.lab.search",),
    ("svag.lab.studies",),
    ("svag.lab.protocol",),
    ("svag.lab.roles",),
    ("svag.analysis", "svag.analysis.contrasts", "svag.analysis.dissection_records"),
    ("svag.analysis.claims", "svag.analysis.results", "svag.analysis.wording"),
    ("svag.analysis.observations",),
    ("svag.analysis.study",),
    (
        *(
            "svag.analysis.verdict",
            "svag.analysis.published",
            "svag.analysis.observations_over_problems",
        ),
        *(
            "svag.analysis.forest",
            "svag.analysis.method_ranks",
            "svag.analysis.effects_over_training",
        ),
        *("svag.analysis.targets", "svag.analysis.tuning"),
    ),
    ("svag.analysis.several_problems",),
    ("svag.analysis.overview",),
    ("svag.report.line_styles", "svag.report.numbers"),
    (
        *("svag.report.axis_limits", "svag.report.tables", "svag.report.details"),
        "svag.report.templates",
    ),
    ("svag.report.panels", "svag.report.charts", "svag.report.overview_tables"),
    ("svag.report.figure5_picture", "svag.report.effect_charts"),
    ("svag.report.content",),
    ("svag.report.page",),
    ("svag.report",),
    ("svag.report.dissection.sorted_records",),
    ("svag.report.dissection.drawing", "svag.report.dissection.curvature_charts"),
    ("svag.report.dissection.noise_charts", "svag.report.dissection.race_charts"),
    ("svag.report.dissection.tables",),
    ("svag.report.dissection.step_charts", "svag.report.dissection.variant_charts"),
    ("svag.report.dissection.page",),
    ("svag.report.dissection",),
    ("svag.export", "svag.export.folders", "svag.export.latex"),
    ("svag.export.tables", "svag.export.json_text"),
    ("svag.export.files",),
    ("svag.trackers", "svag.trackers.runs"),
    ("svag.trackers.sending",),
    (
        *("svag.trackers.tensorboard_files", "svag.trackers.mlflow_store"),
        "svag.trackers.wandb_runs",
    ),
    ("svag.lab.agreement", "svag.lab.batches", "svag.lab.evaluation"),
    ("svag.lab.optimizers", "svag.lab.base_run"),
    ("svag.lab.devices", "svag.lab.step_state"),
    ("svag.lab.resuming",),
    ("svag.lab.cuda_graph",),
    ("svag.lab.session", "svag.lab.checkpoints"),
    ("svag.lab.train", "svag.lab.search_starts", "svag.lab.timing"),
    (
        *("svag.diagnosis", "svag.diagnosis.rotation", "svag.diagnosis.longer_training"),
        "svag.diagnosis.track_record",
        *("svag.diagnosis.curvature", "svag.diagnosis.monitoring"),
        *("svag.diagnosis.outputs", "svag.diagnosis.curvature.linear_operator"),
        *("svag.diagnosis.kept_state", "svag.diagnosis.trained_optimizer"),
        *("svag.diagnosis.curvature.double_backward", "svag.diagnosis.curvature.row_classes"),
    ),
    ("svag.diagnosis.refusals",),
    (
        "svag.diagnosis.objective",
        "svag.diagnosis.curvature.lanczos",
        "svag.diagnosis.curvature.p_diag_sampling",
    ),
    (
        *("svag.diagnosis.budget", "svag.diagnosis.line_search", "svag.diagnosis.sampling"),
        "svag.diagnosis.curvature.flat_vector",
    ),
    ("svag.diagnosis.curvature.batch_graph",),
    ("svag.diagnosis.curvature.derivative_checks",),
    ("svag.diagnosis.curvature.products",),
    ("svag.diagnosis.curvature.summary",),
    ("svag.diagnosis.directions", "svag.diagnosis.noise_summary", "svag.diagnosis.improvement"),
    ("svag.diagnosis.measurement", "svag.diagnosis.race_result", "svag.diagnosis.last_round"),
    ("svag.diagnosis.race",),
    (
        "svag.diagnosis.monitoring.allowance",
        "svag.diagnosis.monitoring.noise_figures",
        "svag.diagnosis.monitoring.sinks",
    ),
    ("svag.diagnosis.monitoring.optimizer_averages", "svag.diagnosis.monitoring.probes"),
    ("svag.diagnosis.monitoring.monitor",),
    ("svag.integrations", "svag.integrations.figures", "svag.integrations.loaders"),
    ("svag.integrations.hf", "svag.integrations.lightning", "svag.integrations.timm"),
    ("svag.diagnosis.conclusion", "svag.diagnosis.race_training"),
    ("svag.diagnosis.findings",),
    ("svag.diagnosis.plan",),
    ("svag.diagnosis.dissect",),
    ("svag.diagnosis.problem_dissection",),
    (
        *("svag.lab.executors", "svag.lab.executors.thread_count", "svag.lab.executors.cluster"),
        "svag.lab.executors.driver_process",
    ),
    ("svag.lab.executors.contract", "svag.lab.executors.submission"),
    (
        *("svag.lab.executors.worker", "svag.lab.executors.streaming"),
        "svag.lab.executors.code_to_copy",
    ),
    ("svag.lab.executors.local", "svag.lab.executors.ray_cluster"),
    ("svag.lab.executors.slurm_cluster", "svag.lab.executors.ray_driver"),
    ("svag.lab.executors.detached",),
    ("svag.lab.execution",),
    ("svag.progress", "svag.bench", "svag.bench.runner", "svag.bench.verdict"),
    ("svag.bench.allocation", "svag.bench.contestants"),
    ("svag.bench.step",),
    ("svag.bench.variance", "svag.bench.rounding", "svag.bench.monitor", "svag.bench.jax_step"),
    ("svag.cli.cluster", "svag.cli.option_values", "svag.cli.options", "svag.cli.several_folders"),
    ("svag.cli.bench", "svag.cli.listing", "svag.cli.reporting"),
    ("svag.cli.compare", "svag.cli.dissecting", "svag.cli.exporting"),
    ("svag.cli",),
    ("svag.__main__",),
)

APART = {
    "svag.theory": ("svag.optim", "svag.problems", "svag.lab", "svag.report", "torch"),
    "svag.optim": ("svag.problems", "svag.lab", "svag.report"),
    "svag.variance": ("svag.optim", "svag.problems", "svag.lab", "svag.report", "svag.theory"),
    "svag.jax": ("svag.problems", "svag.lab", "svag.report", "svag.variance", "torch"),
    "svag.problems": ("svag.optim", "svag.lab", "svag.report"),
    "svag.analysis": (
        *("svag.lab.train", "svag.lab.session", "svag.lab.executors", "svag.lab.execution"),
        *("svag.problems", "svag.optim", "torch"),
    ),
    "svag.lab.protocol": ("svag.lab.executors", "svag.lab.train", "svag.problems", "torch"),
    "svag.export": ("svag.lab.train", "svag.lab.executors", "svag.problems", "torch"),
    "svag.trackers": ("svag.lab.train", "svag.lab.executors", "svag.problems", "torch"),
    "svag.report": ("svag.lab.train", "svag.lab.executors", "svag.problems", "svag.optim", "torch"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & MODULES.keys()
            found |= modules
            if len(modules) < len(names):
                found.add(node.module)
    return found


def test_every_module_has_its_floor() -> None:
    listed = [name for floor in FLOORS for name in floor]
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) | {"svag"} == MODULES.keys()


def test_imports_go_downwards_only() -> None:
    floor_of = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    for name in floor_of:
        for imported in imports(MODULES[name]) & floor_of.keys():
            assert floor_of[imported] < floor_of[name], f"{name} imports {imported}"


def test_what_is_apart_stays_apart() -> None:
    for name, strangers in APART.items():
        inside = [m for m in MODULES if m == name or m.startswith(f"{name}.")]
        for module in inside:
            for imported in imports(MODULES[module]):
                for stranger in strangers:
                    assert imported != stranger, f"{module} imports {imported}"
                    assert not imported.startswith(f"{stranger}."), f"{module} imports {imported}"


def test_public_names_are_there_and_no_others() -> None:
    for name in svag.__all__:
        assert getattr(svag, name) is not None
    assert set(svag.__all__) == {
        "__version__", "METHODS", "Anatomy", "Dissected",
        "SGD", "MSGD", "SSD", "MSSD", "SVAG", "MSVAG", "Adam", "AdamStar",
        "within_batch_variance", "micro_batch_variance", "rank_variance",
        "clip_grad_norm_", "clip_grad_value_", "unscale_", "dissect", "Monitor",
    }  # fmt: skip
    for key, row in svag.METHODS.items():
        assert key == row.key
        assert issubclass(getattr(svag, row.optimizer), svag.Dissected)


def test_importing_svag_imports_nothing_heavy() -> None:
    code = "import sys, svag; print([m for m in ('torch', 'numpy', 'typer') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
