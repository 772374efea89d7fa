-- Write what the rule of promotion has decided, once for all workers: only if all stands as whoever decides has read it.
--
-- KEYS[1]  {ns}:model_versions         read and written
-- ARGV[1]  model name
-- ARGV[2]  what is decided so far, as it was read; '' = nothing
-- ARGV[3]  what is to stand there
-- ARGV[4]  version chosen, as it was read; '' = none
-- ARGV[5]  version that is chosen with it; '' = it stays as it is
-- Returns  1 = written | 0 = something else stands there
local field = 'promotion ' .. ARGV[1]
local stored = redis.call('HMGET', KEYS[1], field, ARGV[1])
if stored[1] == ARGV[3] then return 1 end  -- run again after its reply got lost
if (stored[1] or '') ~= ARGV[2] or (stored[2] or '') ~= ARGV[4] then return 0 end
redis.call('HSET', KEYS[1], field, ARGV[3])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[5]) end
return 1
