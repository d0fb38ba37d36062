-- Gives a lease back, if it is still this one; and takes back a start that was not made.
-- ARGV: host, fence (0: the lease is kept), start (empty: it was made, and stays counted).
-- Answers how many leases and starts were given back.
local given = 0
local fence = whole(redis.call('HGET', HOLDERS, ARGV[1]))
if fence and fence == whole(ARGV[2]) then
  given = redis.call('ZREM', ACTING, ARGV[1]) + redis.call('HDEL', HOLDERS, ARGV[1])
end
if ARGV[3] ~= '' then
  for log = FIRST_LOG, #KEYS do given = given + redis.call('ZREM', KEYS[log], ARGV[3]) end
end
return given
