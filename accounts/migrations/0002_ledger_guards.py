"""The guards of the ledger, in the database: no code path, shell or script gets around them with ordinary SQL.

- An entry moves the balance itself, in the same statement, after it was checked against the entry it resolves.
- A balance cannot be changed in any other way; an entry cannot be changed, deleted or truncated.
- A transfer counts only together with its other half, checked when the transaction commits.
"""

from django.db import migrations

FORWARD = """
CREATE FUNCTION accounts_apply_entry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wallet accounts_creditaccount%ROWTYPE;
    origin accounts_credittransaction%ROWTYPE;
    expected text;
BEGIN
    SELECT * INTO wallet FROM accounts_creditaccount WHERE id = NEW.account_id FOR UPDATE;
    IF NEW.resolves_id IS NOT NULL THEN
        SELECT * INTO origin FROM accounts_credittransaction WHERE id = NEW.resolves_id;
        expected := CASE NEW.kind WHEN 'capture' THEN 'reserve' WHEN 'release' THEN 'reserve'
                                  WHEN 'refund' THEN 'capture' WHEN 'purchase_refund' THEN 'purchase' END;
        IF origin.kind IS DISTINCT FROM expected THEN
            RAISE EXCEPTION 'ledger: a % cannot resolve a %', NEW.kind, origin.kind USING ERRCODE = 'check_violation';
        END IF;
        IF origin.account_id <> NEW.account_id OR origin.reference IS DISTINCT FROM NEW.reference THEN
            RAISE EXCEPTION 'ledger: % resolves an entry of another account or job', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
        IF (NEW.kind IN ('capture', 'release') AND NEW.held_delta <> -origin.held_delta)
           OR (NEW.kind IN ('refund', 'purchase_refund') AND NEW.posted_delta <> -origin.posted_delta) THEN
            RAISE EXCEPTION 'ledger: a % is for the whole amount', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    NEW.posted_after := wallet.posted + NEW.posted_delta;
    NEW.held_after := wallet.held + NEW.held_delta;
    UPDATE accounts_creditaccount SET posted = NEW.posted_after, held = NEW.held_after WHERE id = NEW.account_id;
    RETURN NEW;
END $$;

CREATE TRIGGER apply_entry BEFORE INSERT ON accounts_credittransaction
    FOR EACH ROW EXECUTE FUNCTION accounts_apply_entry();

CREATE FUNCTION accounts_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger: % on % is not allowed; correct with another entry', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON accounts_credittransaction
    FOR EACH ROW EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts_credittransaction
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_delete BEFORE DELETE ON accounts_creditaccount
    FOR EACH ROW EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts_creditaccount
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_refuse();

CREATE FUNCTION accounts_guard_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.posted <> 0 OR NEW.held <> 0 THEN
            RAISE EXCEPTION 'ledger: an account opens empty' USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NEW.id <> OLD.id OR NEW.user_id <> OLD.user_id THEN
        RAISE EXCEPTION 'ledger: an account keeps its owner' USING ERRCODE = 'check_violation';
    ELSIF (NEW.posted <> OLD.posted OR NEW.held <> OLD.held) AND pg_trigger_depth() < 2 THEN
        -- Depth 2 is the update that apply_entry makes; a statement of a client runs at depth 1.
        RAISE EXCEPTION 'ledger: a balance moves only through an entry' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER guard_balance BEFORE INSERT OR UPDATE ON accounts_creditaccount
    FOR EACH ROW EXECUTE FUNCTION accounts_guard_balance();

CREATE FUNCTION accounts_check_transfer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM accounts_credittransaction other
        WHERE other.kind = 'transfer' AND other.reference = NEW.reference AND other.account_id = NEW.counterpart_id
          AND other.counterpart_id = NEW.account_id AND other.posted_delta = -NEW.posted_delta
    ) THEN
        RAISE EXCEPTION 'ledger: a transfer needs its other half' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER check_transfer AFTER INSERT ON accounts_credittransaction DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.kind = 'transfer') EXECUTE FUNCTION accounts_check_transfer();
"""

BACKWARD = """
DROP TRIGGER check_transfer ON accounts_credittransaction;
DROP TRIGGER apply_entry ON accounts_credittransaction;
DROP TRIGGER append_only ON accounts_credittransaction;
DROP TRIGGER no_truncate ON accounts_credittransaction;
DROP TRIGGER guard_balance ON accounts_creditaccount;
DROP TRIGGER no_delete ON accounts_creditaccount;
DROP TRIGGER no_truncate ON accounts_creditaccount;
DROP FUNCTION accounts_check_transfer();
DROP FUNCTION accounts_guard_balance();
DROP FUNCTION accounts_refuse();
DROP FUNCTION accounts_apply_entry();
"""


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
