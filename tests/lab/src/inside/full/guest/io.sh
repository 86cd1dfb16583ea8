# io.sh FILE HOST PORT MIB ROUNDS: times MIB of each kind of transfer, in nanoseconds, as words of the form kind=time.
# copy is what copying them once in memory takes.
set -eu -o pipefail
file=$1 host=$2 port=$3 mib=$4 rounds=$5
data=$(mktemp -p /dev/shm)
trap 'rm -f "$data" "$file"' EXIT
head -c "${mib}M" /dev/urandom >"$data"
now() { date +%s%N; }
timed() {
    local kind=$1 start
    shift
    start=$(now)
    "$@"
    echo "$kind=$(($(now) - start))"
}
copy() { dd if="$data" of=/dev/null bs=1M status=none; }
disk_write() { dd if="$data" of="$file" bs=1M oflag=direct conv=notrunc,fsync status=none; }
disk_read() { dd if="$file" of=/dev/null bs=1M iflag=direct status=none; }
network_in() { head -c "${mib}M" <&3 >/dev/null; }
network_out() {
    cat "$data" >&3
    head -c 1 <&3 >/dev/null # it has all arrived
}
exec 3<>"/dev/tcp/$host/$port"
disk_write # makes the file
while [ "$rounds" -gt 0 ]; do
    for kind in copy disk_write disk_read network_in network_out; do
        timed $kind $kind
    done
    rounds=$((rounds - 1))
done
