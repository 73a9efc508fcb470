"A Slurm cluster of one node, real: munged, slurmctld and slurmd of this user, in a folder."

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PLACES = "/usr/sbin:/usr/local/sbin:/sbin"


def missing():
    "The first tool that is not installed."
    path = f"{os.environ['PATH']}:{PLACES}"
    return next((tool for tool in TOOLS if not shutil.which(tool, path=path)), None)


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    "Started when it is entered; its commands find it by SLURM_CONF."

    def __init__(self, folder: Path, gpus: int = 2):
        self.folder, self.processes = Path(folder), []
        self.env = os.environ | {"PATH": f"{os.environ['PATH']}:{PLACES}"}
        self.env["SLURM_CONF"] = str(self.folder / "slurm.conf")
        user, host = getpass.getuser(), socket.gethostname()
        control, node = free_ports(2)
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o700)
        (self.folder / "munge" / "key").write_bytes(os.urandom(1024))
        (self.folder / "munge" / "key").chmod(0o400)
        (self.folder / "munge").chmod(0o711)  # to the socket everybody comes
        for i in range(gpus):  # a device is a file
            (self.folder / f"gpu{i}").touch()
        devices = f"{self.folder}/gpu[0-{gpus - 1}]"
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={devices}\n")
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/socket",
            "CredType": "cred/munge",
            "SlurmctldPort": control,
            "SlurmdPort": node,
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/slurmd.pid",
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmdSpoolDir": f"{self.folder}/spool",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "KillWait": 5,
            "MpiDefault": "none",
            "GresTypes": "gpu",
            "SchedulerParameters": "sched_interval=1,bf_interval=1",
            "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 Gres=gpu:{gpus}",
            "PartitionName": "main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
        }
        lines = (f"{name}={value}\n" for name, value in settings.items())
        (self.folder / "slurm.conf").write_text("".join(lines))
        version = int(self.run("sinfo", "--version").split()[1].split(".")[0])
        plugin = "disabled" if version > 22 else "cgroup/v1"  # of which nothing is used
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")

    def start(self, *words):
        log = open(self.folder / f"{words[0]}.log", "w")
        self.processes.append(subprocess.Popen(words, env=self.env, stdout=log, stderr=log))

    def run(self, *words, **env):
        "A command of Slurm: what it printed."
        ran = subprocess.run(
            [str(word) for word in words], env=self.env | env, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def __enter__(self):
        munge = self.folder / "munge"
        self.start(
            "munged",
            "--foreground",
            "--force",
            f"--socket={munge}/socket",
            f"--key-file={munge}/key",
            f"--pid-file={munge}/pid",
            f"--seed-file={munge}/seed",
            f"--log-file={munge}/log",
        )
        self.until(lambda: (munge / "socket").exists())
        self.start("slurmctld", "-D", "-f", self.env["SLURM_CONF"])
        self.start("slurmd", "-D", "-f", self.env["SLURM_CONF"])
        self.until(lambda: "idle" in self.run("sinfo", "--noheader", "-o", "%t"))
        return self

    def until(self, happened, seconds=60):
        end = time.time() + seconds
        while True:
            try:
                if happened():
                    return
            except AssertionError:
                pass  # it does not answer yet
            assert time.time() < end, self.said()
            time.sleep(0.1)

    def state(self, job):
        found = self.run("scontrol", "show", "job", job).split("JobState=")[1]
        return found.split()[0]

    def said(self):
        return "\n".join(p.read_text()[-3000:] for p in sorted(self.folder.glob("*.log")))

    def __exit__(self, *error):
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
