-- What there is to know of the fleet, for people and metrics. Changes nothing.
-- ARGV: lost after, names listed of a kind at most, most acting: number, share, stop above: number, share, least hosts for
-- shares; then the logs as for reserve.
-- Answers {now, epoch or -1, total, gone, unwell, acting, most, stopped (1|0), number of the last pause order, {host, left, …} acting, {host, for how long, …}
-- gone, {name, how long ago, …} unclaimed, how many are unclaimed, {left, author, reason} of a pause or {},
-- {used, wait, …} of each window}.
local lost_after, most = whole(ARGV[1]) or 0, whole(ARGV[2]) or 0
local least = whole(ARGV[7]) or 0
local total, gone, unwell = health(lost_after)
local function listed(key, from, to, difference)
  local list, found = {}, redis.call('ZRANGEBYSCORE', key, from, to, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #found, 2 do
    list[#list + 1] = found[i]
    list[#list + 1] = difference(tonumber(found[i + 1]))
  end
  return list
end
local function ago(at) return now - at end
local acting = listed(ACTING, '(' .. text(now), '+inf', function(deadline) return deadline - now end)
local lost = listed(BEAT, '-inf', text(now - lost_after), ago)
local unclaimed = listed(UNCLAIMED, '-inf', '+inf', ago)
local epoch = whole(redis.call('GET', EPOCH))
local windows, at = {}, 8
for log = FIRST_LOG, #KEYS do
  local number = whole(ARGV[at]) or 0
  at = at + 1
  for _ = 1, number do
    local why, wait, used = window_of(KEYS[log], whole(ARGV[at]) or 1, whole(ARGV[at + 1]) or 0, epoch or now)
    at = at + 2
    windows[#windows + 1] = used
    windows[#windows + 1] = why and wait or 0
  end
end
local left, author, reason = pause()
return {
  now, epoch or -1, total, gone, unwell, acting_now(), most_acting(whole(ARGV[3]), tonumber(ARGV[4]) or 0, least, total),
  is_above(gone + unwell, whole(ARGV[5]), tonumber(ARGV[6]), least, total) and 1 or 0,
  whole(redis.call('HGET', PAUSE, 'number')) or 0,
  acting, lost, unclaimed, redis.call('ZCARD', UNCLAIMED), left and { left, author, reason } or {}, windows,
}
