-- Keep the forecasts that the broker has acknowledged, and clear the marks of items that nothing has touched since.
--
-- KEYS[1]  {ns:p}:meta                compared
-- KEYS[2]  {ns:p}:INC:dirty:FREQ      written
-- KEYS[3]  {ns:p}:INC:forecasts:FREQ  written
-- KEYS[4]  {ns:p}:INC:changed         written, when ARGV[2] says that it is given: while the partition is being copied
--          (copy.lua), f, the frequency, a space and the item whose forecast or mark has changed
-- ARGV[1]  MessagePack: owner, incarnation, freq, done {{item_id, mark that was read or '', summary or ''}}
--          an empty summary withdraws the item: a tombstone was sent
-- Returns  {'OK'} | {'OK', '', 1}: the partition is being copied | {'FENCED'} | {'BEHIND'}
--          {'HELD'}: try again in a moment | {'COPIED'}: try again, with the last key
local a = cmsgpack.unpack(ARGV[1])
local stored = redis.call('HMGET', KEYS[1], 'owner', 'incarnation', 'copy_until', 'held_until')
if not stored[1] or stored[2] ~= a.incarnation then return {'BEHIND'} end
if stored[1] ~= a.owner then return {'FENCED'} end
local is_copied = false
if stored[3] then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + time[2] / 1000
  if tonumber(stored[4] or '0') > now then return {'HELD'} end
  is_copied = tonumber(stored[3]) > now
  if is_copied and ARGV[2] ~= '1' then return {'COPIED'} end
end
for _, d in ipairs(a.done) do
  if d[3] == '' then
    redis.call('HDEL', KEYS[3], d[1])
  else
    redis.call('HSET', KEYS[3], d[1], d[3])
  end
  if d[2] ~= '' and redis.call('HGET', KEYS[2], d[1]) == d[2] then redis.call('HDEL', KEYS[2], d[1]) end
end
if not is_copied then return {'OK'} end
for _, d in ipairs(a.done) do redis.call('SADD', KEYS[4], 'f' .. a.freq .. ' ' .. d[1]) end
redis.call('PEXPIREAT', KEYS[4], stored[3])
return {'OK', '', 1}
