#!/bin/bash
# Tries the installed service on a machine with systemd that is thrown away afterwards. Arguments: xtask, agent binary, agent
# binary of the next version, `lifetime` (all steps) or `off` (booted with pp_agent=off). Every step ends the run when it does not
# hold; each that held is a line `install-test: held: ...`.
set -u
xtask=$1 agent=$2 next=$3 mode=$4
unit=pp-agent.service
pins=/sys/fs/bpf/pp-agent
target=10.99.0.1
current="" since=0

held() { [ -z "$current" ] || echo "install-test: held: $current ($((SECONDS - since)) s)"; current="" since=$SECONDS; }
step() { held; current=$1; }
fail() {
    echo "install-test: FAILED: $current: $*"
    systemctl status --no-pager $unit | head -20
    journalctl --no-pager --unit $unit | tail -40
    exit 1
}
# Waits until a command succeeds, at most 300 s: emulated, and beside others.
await() {
    local what=$1 end=$((SECONDS + 300)); shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what: not within 300 s"
        sleep 0.2
    done
}
equal() { [ "$2" = "$3" ] || fail "$1 is $2, must be $3"; }
state() { systemctl show -P "$1" "${2:-$unit}"; }
mode_of() { stat -c '%a %U:%G' "$1"; }
connects() { timeout 20 bash -c "exec 3<>/dev/tcp/$target/502" 2> /run/connect.err; }
restarts() { [ "$(state NRestarts)" -ge 1 ] && systemctl is-active $unit; }
longer_than() { [ "$(wc -l < "$1")" -gt "$2" ]; }
logged() { journalctl --no-pager --unit $unit | grep -q "$1"; }
# The builds whose programs hang in the kernel, one a line.
builds() { ls $pins/links | sed 's/.*@//' | sort -u; }
# The marked loop went on trying since the last look, and nothing got through.
still_refused() {
    local seen; seen=$(wc -l < /run/refused)
    await "the loop tries again $1" longer_than /run/refused "$((seen + 2))"
    [ ! -s /run/connected ] || fail "$1: $(wc -l < /run/connected) connects of the agent got through"
}

step "install puts everything in place, with the right owners and modes"
"$xtask" install --binary "$agent" || fail "install"
while read -r file wanted; do
    equal "$file" "$(mode_of $file)" "$wanted"
done <<'LIST'
/usr/bin/pp-agent 755 root:root
/etc/systemd/system/pp-agent.service 644 root:root
/etc/systemd/system/pp-agents.slice 644 root:root
/usr/lib/sysusers.d/pp-agent.conf 644 root:root
/usr/lib/tmpfiles.d/pp-agent.conf 644 root:root
/etc/pp-agent 750 root:pp-operators
/etc/pp-agent/policy.toml 640 root:pp-operators
/etc/pp-agent/policy.d 750 root:pp-operators
/var/lib/pp-agent 700 root:root
/run/pp-agent 755 root:root
LIST
[ "$(state ActiveState)" = inactive ] || fail "installing started the daemon"

if [ "$mode" = off ]; then
    step "pp_agent=off on the kernel command line starts nothing"
    systemctl start $unit 2> /run/start.err && fail "the service started"
    grep -q Assertion /run/start.err || fail "not for the assertion: $(cat /run/start.err)"
    [ ! -e $pins ] || fail "there are pins"
    held
    echo "install-test: all steps held"
    exit 0
fi

step "a protected server answers an ordinary program"
modprobe dummy && ip link add plant type dummy && ip addr add $target/24 dev plant && ip link set plant up || fail "network"
socat TCP-LISTEN:502,bind=$target,fork,reuseaddr EXEC:/bin/cat 2> /dev/null &
await "the server answers" connects

step "starting something in the agents' slice starts the gate first"
systemd-run --quiet --wait --slice=pp-agents.slice /bin/true || fail "a unit in the slice did not run"
systemctl is-active --quiet $unit || fail "the slice did not start the gate"
gate=$(state ActiveEnterTimestampMonotonic) slice=$(state ActiveEnterTimestampMonotonic pp-agents.slice)
[ "$gate" -gt 0 ] && [ "$gate" -le "$slice" ] || fail "gate READY at $gate, slice active at $slice"

step "it is READY and says what it enforces"
[[ $(state StatusText) == *" by "*", policy files" ]] || fail "status text: $(state StatusText)"
pp-agent status --json > /run/status || fail "status: exit code $?"
grep -q '"healthy": *true' /run/status || fail "status: $(cat /run/status)"
equal "the control socket" "$(mode_of /run/pp-agent/control.sock)" "666 root:root"

step "the agent is refused, others are not"
connects || fail "an ordinary process is refused: $(cat /run/connect.err)"
: > /run/connected; : > /run/refused
# Some tries a second: the machine has other things to do.
cat > /run/loop.sh <<'LOOP'
exec 9<> <(:)
while :; do
    if (exec 3<> /dev/tcp/10.99.0.1/502) 2> /run/loop.err; then echo >> /run/connected; else echo >> /run/refused; fi
    read -r -t 0.1 -u 9
done
LOOP
pp-agent run --agent claude-code -- bash /run/loop.sh &
await "the loop runs" longer_than /run/refused 3
still_refused "while the daemon runs"
# The loop empties the file at each try.
await "the refusal's words" grep -q "Operation not permitted" /run/loop.err

step "reload takes a new policy and new keys, and refuses what is not right"
cat > /etc/pp-agent/policy.d/plant.toml <<'POLICY'
host = "eng-ws-12"
tenant = "acme-water"
any_user = true
[[zone]]
name = "plant-7"
networks = ["10.99.0.0/24"]
[[authority]]
key_id = "lead"
decider = "user:lead@acme"
zones = ["plant-7"]
max_ttl = "8h"
POLICY
pp-agent receipt keygen --id lead --decider user:lead@acme --out /run/lead.pem --unencrypted > /etc/pp-agent/keys.json || fail "keygen"
systemctl reload $unit || fail "reload"
shows_zone() { pp-agent policy show | grep -q plant-7; }
await "the new policy" shows_zone
chmod 666 /etc/pp-agent/keys.json
pp-agent policy reload 2> /run/reload.err && fail "keys that everybody can write were taken"
grep -q "keys.json: mode 0666" /run/reload.err || fail "refused, but with: $(cat /run/reload.err)"
chmod 640 /etc/pp-agent/keys.json

step "a receipt opens the server, and revoking it ends the open flow at once"
pp-agent receipt request --agent claude-code --target $target:502 --for 30m > /run/request || fail "request"
pp-agent receipt sign /run/request --key /run/lead.pem --yes > /run/receipt 2> /run/sign.err || fail "sign: $(cat /run/sign.err)"
cat > /run/flow.sh <<'FLOW'
exec 3<> /dev/tcp/10.99.0.1/502 || exit 1
echo hello >&3 && read -r answer <&3 && echo "$answer" > /run/flow.open
cat <&3
FLOW
pp-agent receipt register /run/receipt --json > /run/registered || fail "register"
id=$(sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' /run/registered | head -1)
pp-agent run --agent claude-code -- bash /run/flow.sh 2> /run/flow.err &
flow=$!
await "the flow is open" grep -q hello /run/flow.open
await "the loop gets through" test -s /run/connected
pp-agent receipt revoke "$id" || fail "revoke"
ended() { ! kill -0 $flow; }
await "the flow's end" ended
grep -q "Software caused connection abort" /run/flow.err || fail "the flow ended with: $(cat /run/flow.err)"
# A try that had got through before is written down before the next one is refused.
seen=$(wc -l < /run/refused)
await "a try after the revocation" longer_than /run/refused "$seen"
: > /run/connected
still_refused "after the revocation"

step "kill -9: systemd restarts the daemon, the hooks hold meanwhile"
kill -9 "$(state MainPID)"
still_refused "after kill -9"
await "the restart" restarts
pp-agent status > /run/status || fail "status: exit code $?: $(cat /run/status)"
still_refused "after the restart"

step "a session that moves the daemon to a frozen cgroup is ended, and the watchdog starts the daemon anew"
mkdir -p /run/systemd/system/$unit.d /sys/fs/cgroup/frozen
printf '[Service]\nWatchdogSec=30s\n' > /run/systemd/system/$unit.d/watchdog.conf
systemctl daemon-reload && systemctl restart $unit || fail "restart with a shorter watchdog"
echo 1 > /sys/fs/cgroup/frozen/cgroup.freeze || fail "freeze"
stopped=$(state MainPID)
pp-agent run --agent claude-code -- bash -c "echo $stopped > /sys/fs/cgroup/frozen/cgroup.procs; sleep 1; echo > /run/survived" 2> /run/move.err
grep -q frozen /proc/$stopped/cgroup || fail "the daemon was not moved: $(cat /run/move.err)"
[ ! -e /run/survived ] || fail "the process that moved the daemon goes on"
still_refused "while the daemon is frozen"
anew() { [ "$(state MainPID)" != "$stopped" ] && systemctl is-active $unit; }
await "another daemon" anew
reported() { pp-agent events | grep -q cgroup_move; }
await "the event of the move" reported
rm -r /run/systemd/system/$unit.d && systemctl daemon-reload && rmdir /sys/fs/cgroup/frozen || fail "tidying up"
still_refused "after the watchdog"

step "upgrade: the next version takes over without a gap, policy and receipts stay"
echo "# the operator's own line" >> /etc/pp-agent/policy.toml
chown root:root /etc/pp-agent/keys.json
"$xtask" install --binary "$next" || fail "installing over a running daemon"
grep -q "operator's own" /etc/pp-agent/policy.toml || fail "the operator's policy was replaced"
equal "keys.json" "$(mode_of /etc/pp-agent/keys.json)" "640 root:pp-operators"
before=$(state MainPID) old=$(builds)
systemctl restart $unit || fail "restart"
[ "$(state MainPID)" != "$before" ] || fail "the old daemon still runs"
[ "$(builds | wc -l)" = 1 ] && [ "$(builds)" != "$old" ] || fail "builds in the kernel: $(builds); before: $old"
pp-agent status --json | grep -q '"abi": *4000000000' || fail "not the next version: $(pp-agent status --json)"
pp-agent receipt show "$id" | grep -q revoked || fail "the receipt is gone: $(pp-agent receipt show "$id" 2>&1)"
still_refused "after the upgrade"

step "stop leaves enforcement on, and says how to end it"
systemctl stop $unit || fail "stop"
[ -e $pins/links ] || fail "the pins are gone"
still_refused "after stop"
connects || fail "an ordinary process is refused: $(cat /run/connect.err)"
await "the journal says how to end it" logged "uninstall-hooks"
equal "the service's result" "$(state Result)" success

step "uninstall --purge ends enforcement and leaves nothing"
systemctl enable $unit 2> /dev/null || fail "enable"
"$xtask" uninstall --purge || fail "uninstall"
for file in /usr/bin/pp-agent /etc/systemd/system/$unit /etc/systemd/system/pp-agents.slice /etc/systemd/system/*/$unit \
    /usr/lib/sysusers.d/pp-agent.conf /usr/lib/tmpfiles.d/pp-agent.conf /etc/pp-agent /var/lib/pp-agent /run/pp-agent $pins; do
    [ ! -e "$file" ] && [ ! -L "$file" ] || fail "$file is still there"
done
getent group pp-operators && fail "the group is still there"
equal "the unit" "$(state LoadState)" not-found
await "the loop gets through" test -s /run/connected
held
echo "install-test: all steps held"
exit 0
