-- Note which windows of accuracy were published and which alerts were raised, and drop rows of days long past.
--
-- KEYS[1]  {ns:p}:meta                    compared
-- KEYS[2]  {ns:p}:INC:accuracy:FREQ       written
-- KEYS[3]  {ns:p}:INC:accuracy_sent:FREQ  written
-- KEYS[4]  {ns:p}:INC:untold              written
-- KEYS[5]  {ns:p}:INC:changed             written, when ARGV[2] says that it is given: while the partition is being
--          copied (copy.lua), r, the frequency, a space and the row that is gone; w, the same and the window
-- ARGV[1]  MessagePack: owner, incarnation, freq, sent {window, text, …}, gone {row}, gone_windows {window},
--          untold {alert's name, message, …}: kept until Kafka has them
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
for i = 1, #a.sent, 2 do redis.call('HSET', KEYS[3], a.sent[i], a.sent[i + 1]) end
for i = 1, #a.untold, 2 do redis.call('HSET', KEYS[4], a.untold[i], a.untold[i + 1]) end
for _, row in ipairs(a.gone) do redis.call('HDEL', KEYS[2], row) end
for _, window in ipairs(a.gone_windows) do redis.call('HDEL', KEYS[3], window) end
if not is_copied then return {'OK'} end
for i = 1, #a.sent, 2 do redis.call('SADD', KEYS[5], 'w' .. a.freq .. ' ' .. a.sent[i]) end
for _, row in ipairs(a.gone) do redis.call('SADD', KEYS[5], 'r' .. a.freq .. ' ' .. row) end
for _, window in ipairs(a.gone_windows) do redis.call('SADD', KEYS[5], 'w' .. a.freq .. ' ' .. window) end
redis.call('PEXPIREAT', KEYS[5], stored[3])
return {'OK', '', 1}
