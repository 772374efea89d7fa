-- Keep the forecasts that the broker has acknowledged, and clear the marks of items that nothing has touched since.
--
-- KEYS[1]  {ns:p}:meta                compared
-- KEYS[2]  {ns:p}:INC:dirty:FREQ      written
-- KEYS[3]  {ns:p}:INC:forecasts:FREQ  written
-- KEYS[4]  {ns:p}:INC:calibration:FREQ written
-- KEYS[5]  {ns:p}:INC:segments:FREQ   read and written
-- KEYS[6]  {ns:p}:INC:scores:FREQ     written
-- KEYS[7]  {ns:p}:INC:challenge:FREQ  written
-- KEYS[8]  {ns:p}:INC:accuracy:FREQ   read and written
-- KEYS[9]  {ns:p}:INC:alerts:FREQ     written
-- KEYS[10] {ns:p}:INC:alert_levels:FREQ read and written
-- KEYS[11] {ns:p}:INC:untold          written
-- KEYS[12] {ns:p}:INC:changed         written, when ARGV[2] says that it is given: while the partition is being copied
--          (copy.lua), f, the frequency, a space and the item whose forecast or mark has changed; l, the frequency, a
--          space and the time zone whose segments have; r, the frequency, a space and the row of accuracy that has;
--          v, the frequency, a space and the name of the levels that have
-- ARGV[1]  MessagePack: owner, incarnation, freq,
--          done {{item_id, mark that was read or '', summary or '' or '=', and what is remembered of the item:
--                calibration, scores, challenge, alerts, each '' = as it stands}}
--          an empty summary withdraws the item: a tombstone was sent; '=' leaves its forecast as it stands
--          learnt {time zone, JSON of SegmentLevels, …}: counts and ranks are added to those of the same bucket, take
--          the place of an earlier one's, and are dropped when a later one has begun
--          levels {name, JSON of AlertLevels, …}: the same of their sums
--          untold {alert's name, message, …}: kept until Kafka has them
--          sums {row, JSON of [[step, number …] …], …}: added to what stands in the row, step by step
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
-- Of an entry the places of what it writes, and the key that each stands under.
local WRITTEN = {{3, KEYS[3]}, {4, KEYS[4]}, {5, KEYS[6]}, {6, KEYS[7]}, {7, KEYS[9]}}
-- Run again after its reply got lost it must not add anything once more: all that the first entry writes stands then.
-- No entry can be written twice otherwise: a summary counts revisions, a challenge is only written when it has changed.
local is_again = false
for _, d in ipairs(a.done) do
  if d[3] ~= '' then
    is_again = true
    for _, place in ipairs(WRITTEN) do
      local text = d[place[1]]
      if text ~= '' and text ~= '=' then is_again = is_again and redis.call('HGET', place[2], d[1]) == text end
    end
    break
  end
end
for _, d in ipairs(a.done) do
  for _, place in ipairs(WRITTEN) do
    local text = d[place[1]]
    if d[3] == '' then
      redis.call('HDEL', place[2], d[1])
    elseif text ~= '' and text ~= '=' then
      redis.call('HSET', place[2], d[1], text)
    end
  end
  if d[2] ~= '' and redis.call('HGET', KEYS[2], d[1]) == d[2] then redis.call('HDEL', KEYS[2], d[1]) end
end
-- A SegmentLevels is {bucket, levels, scales, counts, ranks}, an AlertLevels {period, wealth, judged, sums}: what is
-- added up stands from the fourth on. Sums stay far below 10^14, up to which cjson writes every digit.
local function add(key, named)
  for i = 1, is_again and 0 or #named, 2 do
    local name, text = named[i], named[i + 1]
    local before = redis.call('HGET', key, name)
    local own, stands = cjson.decode(text), before and cjson.decode(before)
    if stands and stands[1] == own[1] then
      for part = 4, #own do
        for place, number in ipairs(own[part]) do stands[part][place] = stands[part][place] + number end
      end
      redis.call('HSET', key, name, cjson.encode(stands))
    elseif not stands or stands[1] < own[1] then
      redis.call('HSET', key, name, text)
    end
  end
end
for i = 1, #a.untold, 2 do redis.call('HSET', KEYS[11], a.untold[i], a.untold[i + 1]) end
add(KEYS[5], a.learnt)
add(KEYS[10], a.levels)
-- Doubles are exact up to 2^53, where a sum stops; cjson would write 14 digits of it.
local MOST = 9007199254740992
for i = 1, is_again and 0 or #a.sums, 2 do
  local before = redis.call('HGET', KEYS[8], a.sums[i])
  local rows, of_step, texts = before and cjson.decode(before) or {}, {}, {}
  for _, row in ipairs(rows) do of_step[row[1]] = row end
  for _, own in ipairs(cjson.decode(a.sums[i + 1])) do
    local row = of_step[own[1]]
    if row then
      for n = 2, #own do row[n] = row[n] + own[n] end
    else
      rows[#rows + 1] = own
    end
  end
  for n, row in ipairs(rows) do
    for m, number in ipairs(row) do row[m] = string.format('%.0f', math.max(-MOST, math.min(MOST, number))) end
    texts[n] = '[' .. table.concat(row, ',') .. ']'
  end
  redis.call('HSET', KEYS[8], a.sums[i], '[' .. table.concat(texts, ',') .. ']')
end
if not is_copied then return {'OK'} end
for _, d in ipairs(a.done) do redis.call('SADD', KEYS[12], 'f' .. a.freq .. ' ' .. d[1]) end
for i = 1, #a.learnt, 2 do redis.call('SADD', KEYS[12], 'l' .. a.freq .. ' ' .. a.learnt[i]) end
for i = 1, #a.levels, 2 do redis.call('SADD', KEYS[12], 'v' .. a.freq .. ' ' .. a.levels[i]) end
for i = 1, #a.sums, 2 do redis.call('SADD', KEYS[12], 'r' .. a.freq .. ' ' .. a.sums[i]) end
redis.call('PEXPIREAT', KEYS[12], stored[3])
return {'OK', '', 1}
