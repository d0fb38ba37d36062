-- Which host each name means, for a gateway. Names that nobody has claimed are noted, the last thousand of them.
-- ARGV: the names.
-- Answers {how old the memory is, a host or '' for each name}.
local epoch = memory(0)
local answer = { now - epoch }
for i = 1, #ARGV do
  local host = redis.call('HGET', NAMES, ARGV[i])
  answer[#answer + 1] = host or ''
  if not host then redis.call('ZADD', UNCLAIMED, text(now), ARGV[i]) end
end
redis.call('ZREMRANGEBYRANK', UNCLAIMED, 0, -1001)
return answer
