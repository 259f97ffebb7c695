#!/bin/bash

# Parameters
#SBATCH --array=0-7%4
#SBATCH --constraint=nvme
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=2
#SBATCH --job-name=sdbatch-red-foxes
#SBATCH --mem=32GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/foxes/slurm/%A_%a_0_log.out
#SBATCH --partition=a100
#SBATCH --requeue
#SBATCH --reservation=mine
#SBATCH --signal=USR2@90
#SBATCH --time=240
#SBATCH --wckey=submitit

# setup
trap '' TERM USR2
module load cuda/12
source ${HOME}/venv/bin/activate

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/foxes/slurm/%A_%a_%t_log.out --cpus-per-task=4 --container-image=sdbatch.sqsh sh -c 'trap '"'"''"'"' TERM USR2; exec python "$@"' sh -u -m submitit.core._submit /shared/foxes/slurm
