# hot_disk.sh DEVICE MIB: waits for a disk that is being added, fills it, and says the checksum of what it holds.
set -eu -o pipefail
device=$1 mib=$2
tries=0
while [ ! -b "$device" ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || {
        echo "there is no $device after a minute" >&2
        exit 1
    }
    sleep 0.1
done
head -c "${mib}M" /dev/urandom | dd of="$device" bs=1M iflag=fullblock conv=fsync status=none
echo 3 >/proc/sys/vm/drop_caches
sum=$(head -c "${mib}M" "$device" | sha256sum)
echo "sha256=${sum%% *}"
