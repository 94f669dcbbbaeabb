#!/usr/bin/env bash
# A real single-node SLURM on loopback, for testing batch submission: `local_slurm.sh start|stop|status`.
# Needs root and Debian's packages: apt-get install -y slurm-wlm munge. No accounting database.
# After `start`: run the printed `export SLURM_CONF=…`, then sinfo, srun, sbatch, squeue work (partition "debug").
set -euo pipefail
home=${TMPDIR:-/tmp}/vitsee-slurm
conf=$home/slurm.conf
case "${1:-}" in
start)
  mkdir -p "$home"/{state,spool,log} /run/munge
  chown munge:munge /run/munge
  pgrep -x munged >/dev/null || su munge -s /bin/sh -c /usr/sbin/munged
  cat >"$conf" <<C
ClusterName=vitsee-test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo) State=UNKNOWN
PartitionName=debug Nodes=$(hostname) Default=YES MaxTime=INFINITE State=UP
C
  export SLURM_CONF=$conf
  slurmctld
  sleep 2
  slurmd
  for _ in $(seq 20); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.5; done
  sinfo
  echo "export SLURM_CONF=$conf"
  ;;
stop)
  for daemon in slurmd slurmctld; do
    [ ! -f "$home/$daemon.pid" ] || kill "$(cat "$home/$daemon.pid")" || true
  done
  ;;
status)
  SLURM_CONF=$conf sinfo
  ;;
*)
  echo "usage: $0 start|stop|status" >&2
  exit 2
  ;;
esac
