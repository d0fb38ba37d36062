-- Checks everything that the fleet has to say about one start, and counts it: all or nothing.
-- ARGV: host, start, seen fence, in need (1|0), lease (0: none is needed), most acting: number, share, stop above: number,
-- share, least hosts for shares, lost after; then for each log the number of its windows, and count and length of each.
-- Answers {'granted', fence, left, acting, most} or why not, beginning with how long to wait:
-- {'paused', wait, author, reason}, {'stop', wait, bad, total}, {'limited'|'young', wait, log, window, used},
-- {'pace', wait, acting, most}.
local host, start = ARGV[1], ARGV[2]
local in_need, lease = ARGV[4] == '1', whole(ARGV[5]) or 0
local most_count, most_share = whole(ARGV[6]), tonumber(ARGV[7]) or 0
local stop_count, stop_share = whole(ARGV[8]), tonumber(ARGV[9])
local least, lost_after = whole(ARGV[10]) or 0, whole(ARGV[11]) or 0

local epoch, fence = memory(whole(ARGV[3]) or 0)
-- Whoever asks is here, and whoever asks because of an alert is not well.
redis.call('ZADD', BEAT, text(now), host)
if in_need then redis.call('ZADD', UNWELL, text(now), host) end

local paused, author, reason = pause()
if paused then return { 'paused', paused, author, reason } end

local holds = lease_of(host)
local total, gone, unwell = health(lost_after)
-- What has begun is finished: a host that acts already is not stopped.
if lease > 0 and not holds and is_above(gone + unwell, stop_count, stop_share, least, total) then
  return { 'stop', lost_after, gone + unwell, total }
end

local at, refused = 12, nil
local longest = {}
for log = FIRST_LOG, #KEYS do
  -- Redis's clock was set back: what is ahead of it counts as just made.
  for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[log], '(' .. text(now), '+inf')) do
    redis.call('ZADD', KEYS[log], text(now), ahead)
  end
  -- The same start asked for again, because the answer was lost, is counted once.
  local known = redis.call('ZSCORE', KEYS[log], start)
  local windows = whole(ARGV[at]) or 0
  at = at + 1
  longest[log] = 0
  for window = 1, windows do
    local count, length = whole(ARGV[at]) or 1, whole(ARGV[at + 1]) or 0
    at = at + 2
    longest[log] = math.max(longest[log], length)
    local why, wait, used = window_of(KEYS[log], count, length, epoch)
    if why and not known and (not refused or wait > refused[2]) then
      refused = { why, wait, log - FIRST_LOG, window - 1, used }
    end
  end
end
if refused then return refused end

local acting, most = acting_now(), most_acting(most_count, most_share, least, total)
if lease > 0 then
  if not holds then
    if acting >= most then
      local next = redis.call('ZRANGEBYSCORE', ACTING, '(' .. text(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
      return { 'pace', math.max(1, (tonumber(next[2]) or now) - now), acting, most }
    end
    for _, over in ipairs(redis.call('ZRANGEBYSCORE', ACTING, '-inf', text(now), 'LIMIT', 0, 100)) do
      redis.call('ZREM', ACTING, over)
      redis.call('HDEL', HOLDERS, over)
    end
    holds = fence + 1
    redis.call('SET', FENCE, text(holds))
    redis.call('HSET', HOLDERS, host, text(holds))
    acting = acting + 1
  end
  redis.call('ZADD', ACTING, text(now + lease), host)
end

for log = FIRST_LOG, #KEYS do
  redis.call('ZADD', KEYS[log], 'NX', text(now), start)
  redis.call('ZREMRANGEBYSCORE', KEYS[log], '-inf', text(now - longest[log]))
  redis.call('PEXPIRE', KEYS[log], text(longest[log]))
end
return { 'granted', holds or fence, lease, acting, most }
