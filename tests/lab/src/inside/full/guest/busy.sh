# busy.sh HOST PORT FILE: keeps the disk and the network busy, until the connection is cut.
set -u
host=$1 port=$2 file=$3
while :; do
    echo 3 >/proc/sys/vm/drop_caches
    cat "$file" >/dev/null
    dd if=/dev/zero of="$file.busy" bs=1M count=16 conv=fsync status=none
done &
cat /dev/zero >"/dev/tcp/$host/$port"
kill %1
