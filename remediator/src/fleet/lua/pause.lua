-- Pauses the whole fleet, or ends that. What is over is written down and not deleted: a pause that vanished, because Redis
-- lost its memory, is in force for all who have seen it.
-- ARGV: 'pause' | 'resume', author, reason, how long (-1: until somebody resumes).
-- Answers 1 when a pause was in force before.
local before = pause() and 1 or 0
local lasts = tonumber(ARGV[4]) or -1
redis.call('HINCRBY', PAUSE, 'number', 1)
redis.call('HSET', PAUSE, 'active', ARGV[1] == 'pause' and '1' or '0', 'author', ARGV[2], 'reason', ARGV[3], 'at', text(now),
  'until', lasts >= 0 and text(now + lasts) or '')
return before
