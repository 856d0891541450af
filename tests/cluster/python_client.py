"""Other people's clients: a stock Python gRPC environment made for the tests, and stubs generated from
our protos. Scenarios that need it call reexecute() first."""
import fcntl
import glob
import os
import subprocess
import sys

from harness import ROOT

VENV = os.path.join(ROOT, "build", "test-venv")
STUBS = os.path.join(ROOT, "build", "test-stubs")
PACKAGES = ["grpcio", "grpcio-tools", "grpcio-reflection", "grpcio-health-checking"]


def stubs_are_newer(protos):
    """Whether the stubs were made, all of them, after the last change of a proto."""
    stamp = os.path.join(STUBS, "ready")
    return os.path.exists(stamp) and os.path.getmtime(stamp) > max(map(os.path.getmtime, protos))


def make(python):
    if not os.path.exists(os.path.join(VENV, "ready")):
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", VENV], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES], check=True)
        open(os.path.join(VENV, "ready"), "w", encoding="utf-8").close()
    protos = glob.glob(os.path.join(ROOT, "proto/shoal/v1/*.proto"))
    if stubs_are_newer(protos):
        return
    os.makedirs(STUBS, exist_ok=True)
    subprocess.run([python, "-m", "grpc_tools.protoc", "-I", os.path.join(ROOT, "proto"), "--python_out", STUBS,
                    "--grpc_python_out", STUBS, *protos], check=True)
    open(os.path.join(STUBS, "ready"), "w", encoding="utf-8").close()


def prepare():
    """Makes the environment and the stubs once, whoever comes first; others wait for it."""
    python = os.path.join(VENV, "bin", "python")
    os.makedirs(os.path.dirname(VENV), exist_ok=True)
    with open(VENV + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make(python)
    return python


def reexecute():
    """Goes on in the environment; returns there."""
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
        sys.path.insert(0, STUBS)
        return
    python = prepare()
    os.execv(python, [python, *sys.argv])
