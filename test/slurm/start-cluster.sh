#!/bin/bash
# Starts a Slurm of one controller and two nodes on this machine, all in the folder that is given; nothing else is
# touched. Ports from PORT on. Stops everything again when standard input is closed.
set -euo pipefail
folder=$(cd "$1" && pwd)
port=${2:-27817}
host=$(hostname -s)
mkdir -p "$folder"/{state,spool-n1,spool-n2,log,munge}
chmod 700 "$folder/munge"
head -c 128 /dev/urandom > "$folder/munge/key"
chmod 400 "$folder/munge/key"

cat > "$folder/slurm.conf" <<CONF
ClusterName=stillhouse
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1,defer
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=2 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  wait
}
trap stop EXIT
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" \
  < /dev/null > "$folder/log/munged" 2>&1 &
pids+=($!)
for _ in $(seq 50); do [ -S "$folder/munge/socket" ] && break; sleep 0.1; done
slurmctld -D -c -f "$SLURM_CONF" < /dev/null > "$folder/log/slurmctld.out" 2>&1 &
pids+=($!)
for node in n1 n2; do
  slurmd -D -N "$node" -f "$SLURM_CONF" < /dev/null > "$folder/log/$node.out" 2>&1 &
  pids+=($!)
done
for _ in $(seq 100); do
  [ "$(sinfo -h -N -o '%T' 2> /dev/null | grep -c '^idle$')" = 2 ] && break
  sleep 0.3
done
sinfo -h -N -o '%N %T'
cat > /dev/null
