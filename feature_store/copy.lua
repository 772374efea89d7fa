-- Copy a partition while it is written to: note what changes meanwhile, and at the end hold writers back for a moment.
--
-- KEYS[1]  {ns:p}:meta         copy (who copies), copy_until, held_until (ms of this server's clock) read and written
-- KEYS[2]  {ns:p}:INC:changed  what has been written since it was last taken; see apply.lua
-- ARGV     begin, take, hold or end; a token that names the copy; incarnation; ms for which the copy is granted; ms for
--          which writers are to be held back (hold)
-- Returns  {'OK', changed, flat meta} | {'GONE'}: not, or no longer, this copy's partition
--          begin: {'BUSY', ms left of another copy} | end: {'LATE'}: writers were held back no longer when it came
-- A copy that ends without saying so is over when its time is: writers compare it with the clock.
local verb, token = ARGV[1], ARGV[2]
local meta, changed = KEYS[1], KEYS[2]
local stored = redis.call('HMGET', meta, 'incarnation', 'copy', 'copy_until', 'held_until')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local copy_left = tonumber(stored[3] or '0') - now
if stored[1] ~= ARGV[3] then return {'GONE'} end
if verb == 'begin' then
  if copy_left > 0 and stored[2] ~= token then return {'BUSY', copy_left} end
elseif stored[2] ~= token or copy_left <= 0 then
  return {'GONE'}
elseif verb == 'end' and tonumber(stored[4] or '0') <= now then
  return {'LATE'}
end

local names = redis.call('SMEMBERS', changed)
redis.call('DEL', changed)
if verb == 'end' then
  redis.call('HDEL', meta, 'copy', 'copy_until', 'held_until')
else
  redis.call('HSET', meta, 'copy', token, 'copy_until', string.format('%.0f', now + ARGV[4]))
  if verb == 'hold' then
    redis.call('HSET', meta, 'held_until', string.format('%.0f', now + ARGV[5]))
  else
    redis.call('HDEL', meta, 'held_until')
  end
end
return {'OK', names, redis.call('HGETALL', meta)}
