-- A host says that it is here, how it is, and by which names alerts mean it; and hears how the fleet is.
-- ARGV: host, instance, seen fence, first beat of this process (1|0), in need (1|0), lost after, forgotten after, version,
-- then its names.
-- Answers {now, epoch, fence, total, gone, unwell, acting, twin (1|0), pause number, pause left (0: none is in force),
-- author, reason, names that belong to another host…}.
local host, instance, first = ARGV[1], ARGV[2], ARGV[4] == '1'
local lost_after, forgotten_after = whole(ARGV[6]) or 0, whole(ARGV[7]) or 0
local epoch, fence = memory(whole(ARGV[3]) or 0)

-- Hosts that are gone for good, a few at a time, with their names.
local function names_in(record)
  local names, position = {}, 0
  for word in string.gmatch(record or '', '%S+') do
    position = position + 1
    if position > 2 then names[#names + 1] = word end
  end
  return names
end
local function disown(owner, record, keep)
  for _, name in ipairs(names_in(record)) do
    if not keep[name] and redis.call('HGET', NAMES, name) == owner then redis.call('HDEL', NAMES, name) end
  end
end
for _, forgotten in ipairs(redis.call('ZRANGEBYSCORE', BEAT, '-inf', text(now - forgotten_after), 'LIMIT', 0, 100)) do
  disown(forgotten, redis.call('HGET', INSTANCES, forgotten), {})
  redis.call('HDEL', INSTANCES, forgotten)
  redis.call('ZREM', BEAT, forgotten)
  redis.call('ZREM', UNWELL, forgotten)
end

local record, keep = instance .. ' ' .. ARGV[8], {}
for i = 9, #ARGV do
  record = record .. ' ' .. ARGV[i]
  keep[ARGV[i]] = true
end
local before = redis.call('HGET', INSTANCES, host)
-- Two processes that both believe to be this host take turns in overwriting each other.
local twin = before and not first and string.match(before, '^%S+') ~= instance
if before ~= record then
  disown(host, before, keep)
  redis.call('HSET', INSTANCES, host, record)
end
local taken = {}
for i = 9, #ARGV do
  local owner = redis.call('HGET', NAMES, ARGV[i])
  if owner and owner ~= host and redis.call('ZSCORE', BEAT, owner) then
    taken[#taken + 1] = ARGV[i]
  elseif owner ~= host then
    redis.call('HSET', NAMES, ARGV[i], host)
    redis.call('ZREM', UNCLAIMED, ARGV[i])
  end
end

redis.call('ZADD', BEAT, text(now), host)
if ARGV[5] == '1' then
  redis.call('ZADD', UNWELL, text(now), host)
else
  redis.call('ZREM', UNWELL, host)
end

local total, gone, unwell = health(lost_after)
local left, author, reason = pause()
local number = whole(redis.call('HGET', PAUSE, 'number')) or 0
local answer = { now, epoch, fence, total, gone, unwell, acting_now(), twin and 1 or 0, number, left or 0, author or '', reason or '' }
for _, name in ipairs(taken) do answer[#answer + 1] = name end
return answer
