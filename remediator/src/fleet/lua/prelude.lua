-- Put before each script. The keys are those of `Keys::shared` in names.rs, in its order; what comes behind them are the
-- logs of starts. All times are Redis's own, in milliseconds: the hosts' clocks count for nothing.
local EPOCH, FENCE, BEAT, UNWELL, ACTING, HOLDERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local NAMES, INSTANCES, PAUSE, UNCLAIMED = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local FIRST_LOG = 11

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- A whole number that a double holds exactly; nil for everything else, also for nan.
local function whole(value)
  local number = tonumber(value or '')
  if number and number >= 0 and number < 9007199254740992 then return math.floor(number) end
  return nil
end

-- As Redis takes it: tostring() would write large numbers with an exponent.
local function text(number) return string.format('%.0f', number) end

-- Since when starts are remembered, and the last fence. Memory that was lost, or that is behind what this host has seen,
-- begins anew: whatever was started before, every window may have been full.
local function memory(seen)
  local epoch, fence = whole(redis.call('GET', EPOCH)), whole(redis.call('GET', FENCE)) or 0
  if not epoch or epoch > now or fence < seen then
    epoch = now
    redis.call('SET', EPOCH, text(epoch))
  end
  if fence < seen then
    fence = seen
    redis.call('SET', FENCE, text(fence))
  end
  return epoch, fence
end

-- How many hosts there are, how many of them are gone, and how many say that something of theirs is in need.
local function health(lost_after)
  local since = text(now - lost_after)
  local gone = redis.call('ZCOUNT', BEAT, '-inf', since)
  return redis.call('ZCARD', BEAT), gone, redis.call('ZCOUNT', UNWELL, '(' .. since, '+inf')
end

local function acting_now() return redis.call('ZCOUNT', ACTING, '(' .. text(now), '+inf') end

-- So many hosts may act at once: a number, or a share of those that there are; one at least.
local function most_acting(count, share, least, total)
  if count then return count end
  if total < least then return 1 end
  return math.max(1, math.floor(share * total + 0.000001))
end

-- Whether more hosts are bad than a number or a share says. A share of very few hosts means nothing.
local function is_above(bad, count, share, least, total)
  if count then return bad > count end
  return share ~= nil and total >= least and bad > share * total + 0.000001
end

-- The lease of a host: its fence and what is left of it, or nil.
local function lease_of(host)
  local deadline, fence = whole(redis.call('ZSCORE', ACTING, host)), whole(redis.call('HGET', HOLDERS, host))
  if deadline and fence and deadline > now then return fence, deadline - now end
  return nil
end

-- The pause in force: how long it still lasts (-1: until somebody resumes), who, and why; or nil.
local function pause()
  local held = redis.call('HMGET', PAUSE, 'active', 'until', 'author', 'reason')
  if held[1] ~= '1' then return nil end
  local ends = whole(held[2])
  if ends and ends <= now then return nil end
  return ends and ends - now or -1, held[3] or '', held[4] or ''
end

-- One window of a log: 'young' while memory is younger than it, 'limited' when it is full, else nil; how long that lasts,
-- and how many starts it holds. At most `count` starts in any (now - window, now].
local function window_of(log, count, window, epoch)
  local used = redis.call('ZCOUNT', log, '(' .. text(now - window), '+inf')
  if now - epoch < window then return 'young', window - (now - epoch), used end
  if used < count then return nil, 0, used end
  local oldest = redis.call('ZREVRANGE', log, count - 1, count - 1, 'WITHSCORES')
  return 'limited', math.max(1, tonumber(oldest[2]) + window - now), used
end
