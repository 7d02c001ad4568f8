//! The commands for Redis. Each is a single script, which Redis runs atomically, and each is safe
//! to repeat after a lost response.

use std::time::Duration;

use redis::{Cmd, Script, ScriptInvocation};

use crate::store::{record::MAX_BYTES, sending::AtRelease};

/// The maximum length of a failure in bytes.
const MAX_FAILURE_BYTES: usize = 4096;
/// The notifications on the channel: other tokens, another failure, and a free lock.
pub(super) const TOKENS: &[u8] = b"tokens";
pub(super) const FAILURE: &[u8] = b"failure";
pub(super) const FREE: &[u8] = b"free";

/// The process that wants to write.
pub(super) struct Holder<'a> {
    pub(super) fence: u64,
    /// Empty if another store has wrapped the lock. Only the fence is checked then.
    pub(super) owner: &'a str,
}

/// `KEYS` are the tokens, lock, fence and failure. Changes are announced on the channel.
pub(super) struct Scripts {
    keys: [String; 4],
    channel: String,
    load: Script,
    write: Script,
    take: Script,
    renew: Script,
    release: Script,
    fail: Script,
    send: Script,
}

impl Scripts {
    pub(super) fn new(key: &str) -> Self {
        Self {
            // The keys share a hash tag, so that a cluster keeps them on one node, as a script
            // requires.
            keys: ["tokens", "lock", "fence", "failure"].map(|name| format!("{{{key}}}:{name}")),
            channel: format!("{{{key}}}:changes"),
            load: Script::new(LOAD),
            write: Script::new(WRITE),
            take: Script::new(TAKE),
            renew: Script::new(RENEW),
            release: Script::new(RELEASE),
            fail: Script::new(FAIL),
            send: Script::new(SEND),
        }
    }

    /// Returns the document, cut if it exceeds the maximum length.
    pub(super) fn load(&self) -> ScriptInvocation<'_> {
        self.with_keys(&self.load, |call| {
            call.arg(MAX_BYTES + 1);
        })
    }

    /// Returns whether the document was written: only if this owner holds the lock with this fence.
    /// An empty document deletes. If `aside` is set, the old document is kept under that name,
    /// which is unique.
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

    /// Returns whether the failure was stored, or removed if the text is empty: only if this owner
    /// holds the lock with this fence.
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

    /// Returns whether the record of the refresh token to be sent was written: only if this owner
    /// holds the lock.
    pub(super) fn send(&self, owner: &str, of: &str) -> ScriptInvocation<'_> {
        self.with_keys(&self.send, |call| {
            call.arg(owner).arg(of);
        })
    }

    /// Returns the fence of the new holder, or 0 while another process holds the lock, and the
    /// record that the previous holders have left.
    pub(super) fn take(&self, owner: &str, lease: Duration) -> ScriptInvocation<'_> {
        self.with_keys(&self.take, |call| {
            call.arg(owner).arg(millis(lease));
        })
    }

    /// Returns for how many milliseconds the lock is held. The value is not positive if the lock is
    /// free.
    pub(super) fn lease_left(&self) -> Cmd {
        let mut command = redis::cmd("PTTL");
        command.arg(&self.keys[1]);
        command
    }

    /// Returns the failure, cut if it exceeds the maximum length. A single command instead of a
    /// script.
    pub(super) fn load_failure(&self) -> Cmd {
        let mut command = redis::cmd("GETRANGE");
        command.arg(&self.keys[3]).arg(0).arg(MAX_FAILURE_BYTES);
        command
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// Returns whether this owner still holds the lock.
    pub(super) fn renew(&self, owner: &str, fence: u64, lease: Duration) -> ScriptInvocation<'_> {
        self.with_keys(&self.renew, |call| {
            call.arg(owner).arg(fence).arg(millis(lease));
        })
    }

    pub(super) fn release(&self, owner: &str, record: &AtRelease) -> ScriptInvocation<'_> {
        let (action, of) = match record {
            AtRelease::Leave => ("leave", ""),
            AtRelease::Remove => ("remove", ""),
            AtRelease::Restore(of) => ("restore", of.as_str()),
        };
        self.with_keys(&self.release, |call| {
            call.arg(owner).arg(&self.channel).arg(action).arg(of);
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

// Both the lock and the fence are checked, because a failover may lose either. A fence above the
// last issued one dates from before Redis lost its data.
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

// The first fence is the time in milliseconds, which no count of holders ever reaches. The fence
// therefore increases even if Redis loses its data.
const TAKE: &str = "
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then
  return {0, false}
end
local beside = redis.call('HMGET', KEYS[1], 'fence', 'sending')
local sending = beside[2] and string.sub(beside[2], 1, 65)
local given = tonumber(redis.call('GET', KEYS[3]))
if holder and given then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  return {given, sending}
end
if not given then
  local now = redis.call('TIME')
  given = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
end
local written = tonumber(beside[1]) or 0
local fence = math.max(given, written) + 1
redis.call('SET', KEYS[3], string.format('%.0f', fence))
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {fence, sending}
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
  if ARGV[3] == 'remove' then
    redis.call('HDEL', KEYS[1], 'sending')
  elseif ARGV[3] == 'restore' then
    redis.call('HSET', KEYS[1], 'sending', ARGV[4])
  end
  redis.call('DEL', KEYS[2])
  redis.pcall('PUBLISH', ARGV[2], 'free')
end
return 1
";

const SEND: &str = "
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'sending', ARGV[2])
return 1
";
