"""Eight devices on the CPU, for tests of sharding; read when JAX first looks for devices."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
