#!/bin/busybox sh
# First process of the demonstration's guest. `cargo lab demo` waits for the lines that begin with "umbra-demo:".
echo "umbra-demo: init"

export PATH=/bin HOME=/ TERM=vt100 PS1='guest:\w# '
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

# The canary: a digest that only this guest computes, so that a copy of it outside can only come from this guest's
# memory. It is never printed. A file of the root file system is memory.
seed=
for word in $(cat /proc/cmdline); do
    case $word in umbra.seed=*) seed=${word#umbra.seed=} ;; esac
done
if [ -n "$seed" ]; then
    canary=$(printf %s "$seed" | sha256sum)
    canary=${canary%% *}
    printf %s "$canary" >/canary
    doublings=0
    while [ $doublings -lt 14 ]; do
        cat /canary /canary >/canary.twice && mv /canary.twice /canary || break
        doublings=$((doublings + 1))
    done
    echo "umbra-demo: canary fills $(wc -c </canary) bytes"
fi

setsid cttyhack sh
echo "umbra-demo: shell has ended"
poweroff -f
