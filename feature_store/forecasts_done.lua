-- Keep the forecasts that the broker has acknowledged, and clear the marks of items that nothing has touched since.
--
-- KEYS[1]  {ns:p}:meta                compared
-- KEYS[2]  {ns:p}:INC:dirty:FREQ      written
-- KEYS[3]  {ns:p}:INC:forecasts:FREQ  written
-- KEYS[4]  {ns:p}:INC:calibration:FREQ written
-- KEYS[5]  {ns:p}:INC:segments:FREQ   read and written
-- KEYS[6]  {ns:p}:INC:changed         written, when ARGV[2] says that it is given: while the partition is being copied
--          (copy.lua), f, the frequency, a space and the item whose forecast or mark has changed; l, the frequency, a
--          space and the time zone whose segments have
-- ARGV[1]  MessagePack: owner, incarnation, freq,
--          done {{item_id, mark that was read or '', summary or '', calibration or '' = as it stands}}
--          an empty summary withdraws the item: a tombstone was sent
--          learnt {time zone, JSON of SegmentLevels, …}: counts and ranks are added to those of the same bucket, take
--          the place of an earlier one's, and are dropped when a later one has begun
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
-- Run again after its reply got lost it must not add what was learnt once more: what it was learnt of stands then.
local is_again = false
for _, d in ipairs(a.done) do
  if d[4] ~= '' then
    is_again = redis.call('HGET', KEYS[4], d[1]) == d[4]
    break
  end
end
for _, d in ipairs(a.done) do
  if d[3] == '' then
    redis.call('HDEL', KEYS[3], d[1])
    redis.call('HDEL', KEYS[4], d[1])
  else
    redis.call('HSET', KEYS[3], d[1], d[3])
    if d[4] ~= '' then redis.call('HSET', KEYS[4], d[1], d[4]) end
  end
  if d[2] ~= '' and redis.call('HGET', KEYS[2], d[1]) == d[2] then redis.call('HDEL', KEYS[2], d[1]) end
end
-- A SegmentLevels is {bucket, levels, scales, counts, ranks}. Sums stay far below 10^14, up to which cjson writes every digit.
for i = 1, is_again and 0 or #a.learnt, 2 do
  local zone, text = a.learnt[i], a.learnt[i + 1]
  local before = redis.call('HGET', KEYS[5], zone)
  local own, stands = cjson.decode(text), before and cjson.decode(before)
  if stands and stands[1] == own[1] then
    for part = 4, 5 do
      for place, number in ipairs(own[part]) do stands[part][place] = stands[part][place] + number end
    end
    redis.call('HSET', KEYS[5], zone, cjson.encode(stands))
  elseif not stands or stands[1] < own[1] then
    redis.call('HSET', KEYS[5], zone, text)
  end
end
if not is_copied then return {'OK'} end
for _, d in ipairs(a.done) do redis.call('SADD', KEYS[6], 'f' .. a.freq .. ' ' .. d[1]) end
for i = 1, #a.learnt, 2 do redis.call('SADD', KEYS[6], 'l' .. a.freq .. ' ' .. a.learnt[i]) end
redis.call('PEXPIREAT', KEYS[6], stored[3])
return {'OK', '', 1}
