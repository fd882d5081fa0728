#!/bin/bash
# Tries the installed service on a machine with systemd that is thrown away afterwards. Arguments: xtask, agent binary,
# `lifetime` (all steps) or `off` (booted with pp_agent=off). Every step ends the run when it does not hold.
set -u
xtask=$1 agent=$2 mode=$3
unit=pp-agent.service
pins=/sys/fs/bpf/pp-agent
target=10.99.0.1

step() { echo "install-test: $*"; }
fail() { echo "install-test: FAILED: $*"; journalctl --no-pager --unit $unit | tail -40; exit 1; }
# Waits until a command succeeds, at most 60 s.
await() {
    local what=$1 end=$((SECONDS + 60)); shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what: not within 60 s"
        sleep 0.2
    done
}
connects() { timeout 20 bash -c "exec 3<>/dev/tcp/$target/502" 2> /run/connect.err; }
restarts() { [ "$(systemctl show -P NRestarts $unit)" -ge 1 ] && systemctl is-active $unit; }
longer_than() { [ "$(wc -l < "$1")" -gt "$2" ]; }
# The marked loop went on trying since the last look, and nothing got through.
still_refused() {
    local seen; seen=$(wc -l < /run/refused)
    await "the loop tries again $1" longer_than /run/refused "$((seen + 2))"
    [ ! -s /run/connected ] || fail "$1: $(wc -l < /run/connected) connects of the agent got through"
}

step "install"
"$xtask" install --binary "$agent" || fail "install"
for file in /usr/bin/pp-agent /etc/systemd/system/$unit /etc/systemd/system/pp-agents.slice /etc/pp-agent/policy.toml; do
    [ -e $file ] || fail "$file is not there"
done
[ "$(stat -c '%a %U:%G' /etc/pp-agent/policy.toml)" = "640 root:pp-operators" ] || fail "policy.toml has the wrong owner or mode"

if [ "$mode" = off ]; then
    step "pp_agent=off on the kernel command line starts nothing"
    systemctl start $unit && fail "the service started"
    [ ! -e $pins ] || fail "there are pins"
    exit 0
fi

step "a protected server"
modprobe dummy && ip link add plant type dummy && ip addr add $target/24 dev plant && ip link set plant up || fail "network"
socat TCP-LISTEN:502,bind=$target,fork,reuseaddr EXEC:/bin/true &
await "the server answers" connects

step "starting something in the agents' slice starts the gate first"
systemd-run --quiet --wait --slice=pp-agents.slice /bin/true || fail "a unit in the slice did not run"
systemctl is-active --quiet $unit || fail "the slice did not start the gate"
gate=$(systemctl show -P ActiveEnterTimestampMonotonic $unit)
slice=$(systemctl show -P ActiveEnterTimestampMonotonic pp-agents.slice)
[ "$gate" -gt 0 ] && [ "$gate" -le "$slice" ] || fail "gate READY at $gate, slice active at $slice"
pp-agent status || fail "status"

step "the agent is refused, others are not"
connects || fail "an ordinary process is refused: $(cat /run/connect.err)"
: > /run/connected; : > /run/refused
cat > /run/loop.sh <<'END'
while :; do
    if (exec 3<> /dev/tcp/10.99.0.1/502) 2> /run/loop.err; then echo >> /run/connected; else echo >> /run/refused; fi
done
END
pp-agent run --agent claude-code -- bash /run/loop.sh &
await "the loop runs" longer_than /run/refused 3
still_refused "while the daemon runs"
grep -q "Operation not permitted" /run/loop.err || fail "refused, but with: $(cat /run/loop.err)"

step "kill -9: systemd restarts the daemon, the hooks hold meanwhile"
kill -9 "$(systemctl show -P MainPID $unit)"
await "the restart" restarts
still_refused "after kill -9"

step "upgrade: another binary, then a restart"
cp "$agent" /run/pp-agent.next && "$xtask" install --binary /run/pp-agent.next || fail "installing over a running daemon"
before=$(systemctl show -P MainPID $unit)
systemctl restart $unit || fail "restart"
[ "$(systemctl show -P MainPID $unit)" != "$before" ] || fail "the old daemon still runs"
still_refused "after the upgrade"

step "stop leaves enforcement on"
systemctl stop $unit || fail "stop"
[ -e $pins ] || fail "the pins are gone"
still_refused "after stop"

step "uninstall ends it"
systemctl start $unit || fail "start after stop"
"$xtask" uninstall --purge || fail "uninstall"
for file in /usr/bin/pp-agent /etc/systemd/system/$unit /etc/pp-agent /var/lib/pp-agent $pins; do
    [ ! -e $file ] || fail "$file is still there"
done
await "the loop gets through" test -s /run/connected
step "all steps held"
exit 0
