-- Whether a lease still stands, and its prolonging. Right before acting a pause counts too; while acting what has begun is
-- finished.
-- ARGV: host, fence, lease, before acting (1|0).
-- Answers {'held', left}, {'late', 0} or {'paused', wait, author, reason}.
local fence = lease_of(ARGV[1])
if not fence or fence ~= whole(ARGV[2]) then return { 'late', 0 } end
if ARGV[4] == '1' then
  local paused, author, reason = pause()
  if paused then return { 'paused', paused, author, reason } end
end
local lease = whole(ARGV[3]) or 0
redis.call('ZADD', ACTING, text(now + lease), ARGV[1])
return { 'held', lease }
