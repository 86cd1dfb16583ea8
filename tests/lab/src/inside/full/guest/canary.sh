# canary.sh FILE: fills FILE, in memory, with the digest of the seed on the kernel's command line. Never says it.
set -eu -o pipefail
file=$1
seed=
for word in $(cat /proc/cmdline); do
    case $word in umbra.seed=*) seed=${word#umbra.seed=} ;; esac
done
[ -n "$seed" ] || {
    echo "the command line has no seed" >&2
    exit 1
}
canary=$(printf %s "$seed" | sha256sum)
canary=${canary%% *}
for _ in $(seq 16384); do printf %s "$canary"; done >"$file"
echo "bytes=$(stat -c %s "$file") kind=$(stat -f -c %T "$(dirname "$file")") processors=$(nproc)"
