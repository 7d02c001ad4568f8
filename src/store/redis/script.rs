//! The questions put to Redis. Each is one script, so that nobody comes between its parts, and each
//! may be put twice: whoever lost the answer asks again.

use std::time::Duration;

use redis::{Cmd, Script, ScriptInvocation};

use crate::store::record::MAX_BYTES;

/// The longest text of a failure that is read, in bytes.
const MAX_FAILURE_BYTES: usize = 4096;
/// What is told on the channel: other tokens, another failure, a lock that is free.
pub(super) const TOKENS: &[u8] = b"tokens";
pub(super) const FAILURE: &[u8] = b"failure";
pub(super) const FREE: &[u8] = b"free";

/// Who wants to write.
pub(super) struct Holder<'a> {
    pub(super) fence: u64,
    /// Empty if a store around this one has wrapped the lock: then its fence alone is asked.
    pub(super) owner: &'a str,
}

/// `KEYS`: tokens, lock, fence, failure; and the channel on which changes are told.
pub(super) struct Scripts {
    keys: [String; 4],
    channel: String,
    load: Script,
    write: Script,
    take: Script,
    renew: Script,
    release: Script,
    fail: Script,
}

impl Scripts {
    pub(super) fn new(key: &str) -> Self {
        Self {
            // One hash tag, so that a cluster keeps them all on one node, as a script needs them.
            keys: ["tokens", "lock", "fence", "failure"].map(|name| format!("{{{key}}}:{name}")),
            channel: format!("{{{key}}}:changes"),
            load: Script::new(LOAD),
            write: Script::new(WRITE),
            take: Script::new(TAKE),
            renew: Script::new(RENEW),
            release: Script::new(RELEASE),
            fail: Script::new(FAIL),
        }
    }

    /// The document, cut where it is longer than one may be.
    pub(super) fn load(&self) -> ScriptInvocation<'_> {
        self.with_keys(&self.load, |call| {
            call.arg(MAX_BYTES + 1);
        })
    }

    /// Whether it was written: not unless this owner has the lock, with this fence. An empty
    /// document deletes. The old document is kept under the name in `aside`, which is new each
    /// time, if there is one.
    pub(super) fn write(
        &self,
        holder: &Holder<'_>,
        document: &str,
        aside: Option<&str>,
    ) -> ScriptInvocation<'_> {
        self.with_keys(&self.write, |call| {
            call.arg(holder.fence).arg(document).arg(aside.unwrap_or_default());
            call.arg(holder.owner).arg(&self.channel);
        })
    }

    /// Whether the failure was kept, or taken back if the text is empty: not unless this owner has
    /// the lock, with this fence.
    pub(super) fn fail(
        &self,
        holder: &Holder<'_>,
        text: &str,
        lifetime: Option<Duration>,
    ) -> ScriptInvocation<'_> {
        self.with_keys(&self.fail, |call| {
            call.arg(holder.fence).arg(text).arg(lifetime.map_or(0, millis));
            call.arg(holder.owner).arg(&self.channel);
        })
    }

    /// The new holder's fence, or 0 while another has the lock.
    pub(super) fn take(&self, owner: &str, lease: Duration) -> ScriptInvocation<'_> {
        self.with_keys(&self.take, |call| {
            call.arg(owner).arg(millis(lease));
        })
    }

    /// For how many milliseconds the lock is held. Not positive if it is free.
    pub(super) fn lease_left(&self) -> Cmd {
        let mut command = redis::cmd("PTTL");
        command.arg(&self.keys[1]);
        command
    }

    /// The failure, cut where it is longer than one may be. No script: it costs Redis one command.
    pub(super) fn load_failure(&self) -> Cmd {
        let mut command = redis::cmd("GETRANGE");
        command.arg(&self.keys[3]).arg(0).arg(MAX_FAILURE_BYTES);
        command
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// Whether the lock is still this owner's.
    pub(super) fn renew(&self, owner: &str, fence: u64, lease: Duration) -> ScriptInvocation<'_> {
        self.with_keys(&self.renew, |call| {
            call.arg(owner).arg(fence).arg(millis(lease));
        })
    }

    pub(super) fn release(&self, owner: &str) -> ScriptInvocation<'_> {
        self.with_keys(&self.release, |call| {
            call.arg(owner).arg(&self.channel);
        })
    }

    fn with_keys<'a>(
        &self,
        script: &'a Script,
        arguments: impl FnOnce(&mut ScriptInvocation<'a>),
    ) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        for key in &self.keys {
            call.key(key);
        }
        arguments(&mut call);
        call
    }
}

fn millis(lease: Duration) -> u64 {
    u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)
}

const LOAD: &str = "
local document = redis.call('HGET', KEYS[1], 'document')
return document and string.sub(document, 1, tonumber(ARGV[1]))
";

// Both the lock and the fence are asked: a failover may forget either. A fence above the last one
// given out is from before Redis lost its data.
const WRITE: &str = "
local ours = tonumber(ARGV[1])
local given = tonumber(redis.call('GET', KEYS[3])) or 0
local written = tonumber(redis.call('HGET', KEYS[1], 'fence')) or 0
local holder = redis.call('GET', KEYS[2])
if not holder or (ARGV[4] ~= '' and holder ~= ARGV[4]) or given ~= ours or written > ours then
  return 0
end
if ARGV[3] ~= '' then
  redis.call('HSETNX', KEYS[1], 'broken:' .. ARGV[3], redis.call('HGET', KEYS[1], 'document') or '')
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], 'document')
else
  redis.call('HSET', KEYS[1], 'document', ARGV[2])
end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
redis.pcall('PUBLISH', ARGV[5], 'tokens')
return 1
";

const FAIL: &str = "
local holder = redis.call('GET', KEYS[2])
if not holder or (ARGV[4] ~= '' and holder ~= ARGV[4]) or redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[4])
elseif ARGV[3] == '0' then
  redis.call('SET', KEYS[4], ARGV[2])
else
  redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[3])
end
redis.pcall('PUBLISH', ARGV[5], 'failure')
return 1
";

// The first fence is the time in milliseconds, which no count of holders catches up with: so it
// rises even if Redis loses its data.
const TAKE: &str = "
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then
  return 0
end
local given = tonumber(redis.call('GET', KEYS[3]))
if holder and given then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  return given
end
if not given then
  local now = redis.call('TIME')
  given = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
end
local written = tonumber(redis.call('HGET', KEYS[1], 'fence')) or 0
local fence = math.max(given, written) + 1
redis.call('SET', KEYS[3], string.format('%.0f', fence))
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return fence
";

const RENEW: &str = "
local holder = redis.call('GET', KEYS[2])
if holder == ARGV[1] or (not holder and redis.call('GET', KEYS[3]) == ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
  return 1
end
return 0
";

const RELEASE: &str = "
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('DEL', KEYS[2])
  redis.pcall('PUBLISH', ARGV[2], 'free')
end
return 1
";
